#!/bin/sh
# Trains the demo data through scripts/slurm_train.sh on a real Slurm, which it sets up for this and takes down again.
#
#   sh tests/slurm/run.sh
#
# A controller, two nodes (both this machine) and munge, with their own key, configuration and ports, in a temporary folder. The job
# has one process on each node and stages its data. Inside the first epoch it is told that its time limit is near (the batch script gets
# USR1, as Slurm would send it), later it is preempted (scontrol requeue). Both times it has to save, start again and continue, and then
# to finish. Prints the job's log and its state, COMPLETED; exit code 0 then, 1 otherwise, 2 where something is missing.
# Needs slurmctld, slurmd, munged and sbatch (Debian and Ubuntu: apt-get install slurm-wlm munge; no service need run). About a minute.

CDPATH=''
cd -- "$(dirname -- "$0")/../.." || exit 2
PATH=$PATH:/usr/sbin:/sbin
for tool in slurmctld slurmd munged sbatch; do
    command -v "$tool" >/dev/null || { echo "error: $tool: not found; install slurm-wlm and munge (Debian, Ubuntu)" >&2; exit 2; }
done
PYTHON=$(sh scripts/setup.sh) || exit 2
folder=$(mktemp -d) || exit 2
host=$(hostname -s)
second=${host}x # after the other one in Slurm's order: the nodes meet at the first one's name, which has to resolve
job=

# stop PIDFILE: ends the daemon that wrote it
stop() {
    [ -s "$1" ] && pid=$(cat "$1") && kill "$pid" 2>/dev/null || return 0
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.5
    done
    kill -9 "$pid"
}

clean() {
    trap '' INT TERM
    [ -z "$job" ] || scancel --quiet "$job"
    [ -z "$job" ] || wait_for 30 finished
    for name in "$host" "$second" controller munge; do stop "$folder/$name.pid"; done
    rm -rf "$folder"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for SECONDS COMMAND...: until the command succeeds; 1 when it did not in time
wait_for() {
    tries=$(($1 * 2))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.5
    done
}

# stuck WHAT: tells what did not happen, with the logs
stuck() {
    echo "error: $1; the logs:" >&2
    tail -n 20 "$folder"/*.log "$folder"/run/slurm-*.log >&2
    exit 1
}

state() { scontrol --oneliner show job "$job" | sed 's/.*JobState=\([A-Z_]*\) .*/\1/'; }
# finished, with nothing of it left on a node
finished() { case $(state) in PENDING | RUNNING | REQUEUED | COMPLETING) false ;; esac && [ -z "$(squeue --noheader --job "$job")" ]; }
requeued() { [ "$(state)" = PENDING ]; }
# logged TEXT [TIMES]: whether the run's log has it, as often as that
logged() { [ "$(grep -c "$1" "$folder"/run/train.log 2>/dev/null)" -ge "${2:-1}" ]; }
# start_again WHY: waits until the job is back in the queue, and lets it resume
start_again() {
    wait_for 40 requeued || stuck "the job is not back in the queue ($1)"
    echo "$1: $(squeue --noheader --format='job %i %T %r' --job "$job")"
    sleep 2                                    # the nodes have to be through with it
    scontrol update JobId="$job" StartTime=now # Slurm would wait two minutes
}
idle() { [ "$(sinfo --noheader --states=idle --format=%D)" = 2 ]; }

set -- $("$PYTHON" -c 'import socket as s; print(*(o.getsockname()[1] for o in [s.create_server(("", 0)) for _ in range(4)]))')
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=$1
SlurmctldPidFile=$folder/controller.pid
SlurmctldLogFile=$folder/controller.log
StateSaveLocation=$folder/state
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$2 CPUs=1
NodeName=$second NodeHostname=$host NodeAddr=127.0.0.2 Port=$3 CPUs=1
PartitionName=cpu Nodes=$host,$second Default=YES State=UP
END
mkdir -m 700 "$folder/state" "$folder/spool.$host" "$folder/spool.$second" "$folder/run"
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
SLURM_CONF=$folder/slurm.conf
export SLURM_CONF
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" || stuck "munged does not start"
slurmctld || stuck "slurmctld does not start"
slurmd -N "$host" && slurmd -N "$second" || stuck "slurmd does not start"
"$PYTHON" -m dataset.demo --root "$folder/demo" >/dev/null || stuck "the demo data cannot be drawn"
wait_for 30 idle || stuck "the nodes do not become idle"
sinfo

cat >"$folder/demo.yaml" <<END
dataset: demo
data_root: $folder/demo
val_id_path: $folder/val.txt
backbone: dinov2_tiny
pretrained: null
crop_size: 28
batch_size: 2
shards: 2
epochs: 2
eval_every: 2
lr: 0.0004
lr_multi: 3.0
num_workers: 0
END
head -n 6 splits/demo/val.txt >"$folder/val.txt"
export OMP_NUM_THREADS=1
answer=$(dataset=demo split=1_20 config=$folder/demo.yaml save_path=$folder/run stage_data=$folder/staged gres=none gpus_per_node=1 \
    cpus_per_gpu=1 sh scripts/slurm_train.sh 2 "$4" cpu) || stuck "sbatch refuses the job"
echo "$answer"
job=${answer##* }
wait_for 90 logged "Iters: [1-9]" || stuck "the job does not train"
scancel --batch --signal=USR1 "$job" || stuck "the job gets no signal"
start_again "near its time limit"
wait_for 60 logged "Epoch: 1," || stuck "the job does not resume after its time limit"
scontrol requeue "$job" || stuck "the job cannot be requeued"
start_again "preempted"
wait_for 120 finished || stuck "the job does not finish"
cat "$folder"/run/slurm-*.log
scontrol --oneliner show job "$job" | tr ' ' '\n' | grep -E '^(JobId|JobState|Restarts|ExitCode|NodeList|NumNodes)='
[ "$(grep -c 'Load from checkpoint' "$folder/run/train.log")" = 2 ] || stuck "the job has not continued from its checkpoints"
for epoch in 0 1; do
    [ "$(grep -c "Epoch: $epoch," "$folder/run/train.log")" = 1 ] || stuck "epoch $epoch is not exactly once in the log"
done
[ "$(state)" = COMPLETED ] || stuck "the job ended as $(state)"
job=
echo COMPLETED
