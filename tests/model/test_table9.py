"""The encoders of the paper's Table 9: parameters in millions, as the public logs of these runs print them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from model import build_model

# backbone: (name in the logs, Total / Encoder / Decoder of Pascal's 21 classes and of ADE20K's 150)
LOGS = {
    "resnet152": ("resnet152", "T78.5 E58.3 D20.3", "T78.6 E58.3 D20.3"),
    "mit_b5": ("mitb5", "T99.2 E81.4 D17.7", "T99.2 E81.4 D17.8"),
    "beit_base": ("beit_b", "T97.2 E86.2 D10.9", "T97.2 E86.2 D11.0"),
    "beit_large": ("beit_l", "T335.9 E304.6 D31.2", "T335.9 E304.6 D31.2"),
    "sam_base": ("sam_b", "T99.8 E88.9 D10.9", "T99.8 E88.9 D11.0"),
    "sam_large": ("sam_l", "T338.6 E307.4 D31.2", "T338.7 E307.4 D31.2"),
}


@pytest.mark.parametrize("name", LOGS)
def test_parameters_are_those_of_the_logs(name: str) -> None:
    if name.startswith(("beit", "sam")) and find_spec("timm") is None:
        pytest.skip("timm is an extra: pip install -r requirements-extra.txt")
    for nclass, expected in zip((21, 150), LOGS[name][1:], strict=True):
        with torch.device("meta"):
            model = build_model(name, nclass, model="dpt")
        total, encoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, model.backbone))
        assert f"T{total:.1f} E{encoder:.1f} D{total - encoder:.1f}" == expected


def test_the_table_is_the_logs(shared: Path) -> None:
    rows = [line.split("\t") for line in (shared / "log_index.tsv").read_text().splitlines() if line.startswith("table09")]
    found = {(row[3], "pascal" in row[0], row[-1]) for row in rows}
    assert found == {(log, bool(i == 0), text) for log, *texts in LOGS.values() for i, text in enumerate(texts)}
