"""What each of the processes of test_data_parallel.py does: ``two_processes.py FOLDER``.

``FOLDER/jobs.pickle`` lists runs; after every step all ranks compare what they hold. What they found is in
``FOLDER/report.json``.
"""

import hashlib
import json
import pickle
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from data_utils.errors import SettingError
from module.gradient_sum import GradientSum
from module.row_sparse import RowSparseEmbedding
from mt_dnn import data_parallel
from mt_dnn.data_parallel import Ranks, join
from mt_dnn.interrupt import Interrupted, RankLost
from mt_dnn.run import run
from mt_dnn.training_step import TrainingStep

step_of_a_run = TrainingStep.__call__


def digest(state: object) -> str:
    """Hash of tensors and plain values, nested."""
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(state, dict):
        return digest([[str(key), digest(value)] for key, value in state.items()])
    if isinstance(state, list | tuple):
        return hashlib.sha256("".join(map(digest, state)).encode()).hexdigest()
    return repr(state)


def do_runs(ranks: Ranks, jobs: list[dict]) -> dict[str, dict]:
    """Do the jobs, one after the other."""
    report = {}
    for job in jobs:
        steps, unequal, shares = [], [], []

        def watched(step, batches, examples, tasks, steps=steps, unequal=unequal, shares=shares):
            result = step_of_a_run(step, batches, examples=examples, tasks=tasks)
            held = (
                step.parts.network.state_dict(),
                step.parts.optimizer.state_dict(),
                step.parts.method.state_dict(),
                result,
            )
            steps.append(step.parts.context.step)
            digests = ranks.gather([digest(part) for part in held])
            unequal.extend(steps[-1:] if any(found != digests[0] for found in digests) else [])
            shares.append(ranks.gather(sum(batch.size for batch in batches)))
            return result

        def progress(now, job=job):
            if job.get("stop") == [ranks.rank, now.step]:
                signal.raise_signal(signal.SIGTERM)

        TrainingStep.__call__ = watched
        try:
            found = run(job["config"], progress, ranks=ranks)
            ended = str(found.status) if found.done else f"{found.status}: {found.error}"
        except Interrupted as stop:
            ended = str(stop)
        report[job["name"]] = {"ended": ended, "steps": steps, "unequal": unequal, "shares": shares}
    return report


def check_primitives(ranks: Ranks) -> None:
    """What runs do not show."""
    check_the_sum_of_gradients(ranks)
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.all_reduce_max(ranks.rank) == 1
    assert ranks.broadcast_state({"a": torch.full((2,), float(ranks.rank))})["a"].tolist() == [0.0, 0.0]
    order = []
    ranks.first_before_others(lambda: order.append(ranks.rank))
    assert order == [ranks.rank]
    drifted = {"a": torch.zeros(3), "b": torch.tensor([0.0, -0.0 if ranks.first else 0.0])}
    with pytest.raises(RuntimeError, match="copies of 'b' in processes"):
        ranks.check_copies(drifted)
    with pytest.raises(SettingError, match="seed of process 1 is 1, of process 0 0"):
        ranks.check_same("seed", ranks.rank)

    def fail():
        raise SettingError("nothing there")

    with pytest.raises(SettingError if ranks.first else RankLost, match="nothing there"):
        ranks.on_first(fail)


def check_the_sum_of_gradients(ranks: Ranks) -> None:
    """Dense and row-sparse gradients, some on one rank alone, one on none."""
    table, dense, idle, far = (nn.Parameter(torch.zeros(9, 2)) for _ in range(4))
    embedding = RowSparseEmbedding(nn.Embedding(9, 2, _weight=table.data))
    named = [("table", embedding.weight), ("dense", dense), ("idle", idle), ("far", far)]
    sum_up = GradientSum(ranks, named)
    for ids in ([[1, 4, 4], [4, 7]], [[], [2]], [[3], []]):  # of rank 0, of rank 1
        plain = torch.zeros(9, 2).requires_grad_()
        for tokens in ids:
            plain[tokens].sum().backward()
        for _, parameter in named:
            parameter.grad = None
        if mine := ids[ranks.rank]:
            (embedding(torch.tensor(mine)).sum() + (ranks.rank + 1) * dense.sum()).backward()
        if not ranks.first and mine:
            far.sum().backward()
        total = sum_up(torch.tensor(float(len(mine))))
        weight = sum(rank + 1 for rank in range(2) if ids[rank])
        assert total == sum(map(len, ids))
        assert embedding.weight.grad.is_coalesced()
        assert torch.equal(embedding.weight.grad.to_dense(), plain.grad)
        assert torch.equal(dense.grad, torch.full((9, 2), float(weight)))
        assert torch.equal(far.grad, torch.full((9, 2), float(bool(ids[1]))))
        assert idle.grad is None
    idle.grad = torch.ones(9, 2)
    with pytest.raises(RuntimeError, match="gradient of 'idle' is of another kind"):
        sum_up(torch.tensor(0.0))


def main() -> None:
    """Do everything and write the report."""
    folder = Path(sys.argv[1])
    jobs = pickle.loads((folder / "jobs.pickle").read_bytes())
    data_parallel.TIMEOUT = timedelta(seconds=60)
    with join("auto") as ranks:
        assert (ranks.size, ranks.device) == (2, None)
        check_primitives(ranks)
        report = do_runs(ranks, jobs)
        if ranks.first:
            (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
