"""Models that are built in several threads at once leave torch as it was."""

from concurrent.futures import ThreadPoolExecutor

import torch
from support import tiny

from hswq_runtime import Checkpoint


def test_building_in_several_threads_leaves_torch_as_it_was(tmp_path):
    path = tiny.checkpoint(tmp_path)

    def build(_number: int) -> bool:
        model = Checkpoint(path).empty_model()
        return all(parameter.is_meta for parameter in model.parameters())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(build, range(24)))
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    assert not layer.weight.is_meta and layer.weight.std() > 0, "and drawn, too"
