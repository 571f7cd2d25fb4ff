#!/bin/sh
# Submits scripts/train.sh to Slurm: on one node as far as its GPUs go, else on as many nodes as needed with the same number on each.
#
#   sh scripts/slurm_train.sh <num_gpu> <port> <partition> [arguments for the method...]
#   dataset=cityscapes split=1_16 sbatch_args="--time=24:00:00 --account=vision" sh scripts/slurm_train.sh 4 29500 gpu
#
# Environment as for train.sh, and: sbatch_args (more options for sbatch; they win over the script's), gpus_per_node (8: as many as a
# node has), cpus_per_gpu (8), gres (gpu:<number on each node>; e.g. gpu:a100:4; none: no GPU is asked for, one process per "GPU" then
# runs on CPUs). stage_data is expanded on the first node: stage_data='$TMPDIR/data' in single quotes.
# --dry-run, anywhere: prints the batch script. The job's log is slurm-JOB.log under the save path. 120 s before the time limit, and
# when it is preempted or its node fails, the job goes back into the queue, and continues from its last checkpoint.
#
# Several runs, a job each, on ports counted up from <port>; then the command that makes their table:
#   dataset=pascal split="92 183" method="supervised unimatch_v2" seeds="0 1 2" sh scripts/slurm_train.sh 4 29500 gpu

. "$(dirname -- "$0")/setup.sh"
form="sh scripts/slurm_train.sh [--dry-run] <num_gpu> <port> <partition> [arguments for the method...]"
dry_run=no
for argument; do
    shift
    if [ "$argument" = --dry-run ]; then dry_run=yes; else set -- "$@" "$argument"; fi
done
positive "$1" || usage "$form (num_gpu: found '$1', expected a number of at least 1)"
positive "$2" || usage "$form (port: found '$2', expected a number of at least 1, e.g. 29500)"
case $3 in
'' | -*) usage "$form (partition: found '$3', expected a name)" ;;
esac
num_gpu=$1 port=$2 partition=$3
shift 3
given_path=$save_path
run_settings "$@"
positive "${gpus_per_node:=8}" || fail "gpus_per_node: found '$gpus_per_node', expected a number of at least 1"
nodes=$(((num_gpu + gpus_per_node - 1) / gpus_per_node))
per_node=$((num_gpu / nodes))
[ $((per_node * nodes)) -eq "$num_gpu" ] ||
    fail "num_gpu: $num_gpu GPUs do not spread evenly over $nodes nodes of at most $gpus_per_node; use a multiple of $nodes"
gres=${gres:-gpu:$per_node}
# a line of the job that starts otherwise is a comment
[ "$gres" = none ] && gres_line="# no GPU" || gres_line="#SBATCH --gres=$gres"
positive "${cpus_per_gpu:=8}" || fail "cpus_per_gpu: found '$cpus_per_gpu', expected a number of at least 1"

# quote WORD...: the words as the shell reads them back
quote() {
    gap=
    for word; do
        printf "$gap'%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
        gap=' '
    done
}

# batch_script ARGUMENT...: prints the job, with these arguments for the method
batch_script() {
    cat <<END
#!/bin/sh
#SBATCH --job-name="$method-$dataset-$split$seed_name"
#SBATCH --partition=$partition
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
$gres_line
#SBATCH --cpus-per-task=$((per_node * cpus_per_gpu))
#SBATCH --chdir="$root"
#SBATCH --output="$(printf '%s' "$save_path" | sed 's/%/%%/g')/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# submitted with: sbatch $(printf %s "$sbatch_args" | tr '\n' ' ')

MASTER_ADDR=\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | head -n 1)
NNODES=$nodes
dataset=$(quote "$dataset")
method=$(quote "$method")
split=$(quote "$split")
exp=$(quote "$exp")
config=$(quote "$config")
save_path=$(quote "$save_path")
seeds=
stage_data="$stage_data"
MAX_RESTARTS=${MAX_RESTARTS:-0}
# srun does not take the job's CPUs per task by itself; the workers count their CPUs by SLURM_CPUS_PER_TASK
SRUN_CPUS_PER_TASK=\$SLURM_CPUS_PER_TASK
export MASTER_ADDR NNODES MAX_RESTARTS dataset method split exp config save_path seeds stage_data SRUN_CPUS_PER_TASK

# the time limit is near: srun passes the signal on, and the training saves and ends with 75
trap 'echo "time limit: saving"; kill -USR1 "\$training"' USR1
# A node that has ended, with 75 after a save for instance, does not end the others: they are done within seconds, or with a last save.
srun --kill-on-bad-exit=0 --wait=600 sh -c 'NODE_RANK=\$SLURM_NODEID exec sh scripts/train.sh "\$@"' train $(quote "$per_node" "$port" "$@") &
training=\$!
code=0
wait "\$training" || code=\$?
# a trapped signal ends the first wait, not the training
while kill -0 "\$training" 2>/dev/null; do
    code=0
    wait "\$training" || code=\$?
done
# back into the queue; the same job continues from its last checkpoint
[ "\$code" -ne 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$code"
END
}

# submit ARGUMENT...: the job goes into the queue
submit() {
    if [ "$dry_run" = yes ]; then
        batch_script "$@"
        return
    fi
    mkdir -p -- "$save_path" || fail "save_path: $save_path cannot be made"
    # shellcheck disable=SC2086 # sbatch_args holds several words
    batch_script "$@" | sbatch $sbatch_args
}

[ "$dry_run" = yes ] || command -v sbatch >/dev/null 2>&1 ||
    fail "sbatch: not found on this machine; submit from a Slurm login node, or see the job with --dry-run"
. scripts/sweep.sh
seed_name=
if several; then
    find_python requirements.txt || fail "no Python that satisfies requirements.txt (${why:-none found}); run: sh scripts/setup.sh"
    start_one() {
        port=$((port + index)) # they may run on one node
        [ "$seed" = none ] || seed_name=-seed$seed
        submit "$@"
    }
    sweep "$@"
    IFS='
'
    # shellcheck disable=SC2086 # one folder a line
    [ "$dry_run" = yes ] || echo "their table: python -m scripts.report $(quote $folders)"
else
    # a list that is missing is an error now, not when the job has waited; a login node may have no Python for it
    case "$dry_run $*" in
    yes* | *--labeled-id-path*) ;;
    *) ! find_python requirements.txt || check_runs ;;
    esac
    submit "$@"
fi
