"""The small real benchmark, from its files to a verified stream."""

from __future__ import annotations

from streamcvit.data import (
    ShardReader,
    StreamIndex,
    TaskFiles,
    generate,
    load_tasks,
    order,
    scale_plan,
    verify,
    write_stream,
)
from streamcvit.data.sample import Sample

TASKS = ("bccd_ground", "clothing_cls", "nlvr_count", "nlvr_truth", "tabmwp_qa")


def test_every_real_sample_comes_once_with_its_own_bytes(shared_dir, tmp_path):
    root = shared_dir / "real"
    files = {task: TaskFiles(train=f"{task}/train.json", test=f"{task}/test.json") for task in TASKS}
    data = load_tasks(root, files)
    available = {task: len(one.train) for task, one in data.items()}
    plan = scale_plan(generate(TASKS, 8, 326, seed=0, tasks_per_chunk=(2, 3)), available, exhaust=True)
    samples = ((chunk, data[task].train[item]) for chunk, task, item in order(plan, available, seed=0))
    test = {task: one.test for task, one in data.items()}
    index = write_stream(tmp_path / "s", samples, [one.spec for one in data.values()], test, seed=0, plan=plan)

    assert (len(index), index.n_chunks, len(index.eval_index())) == (2608, 8, 678)
    assert verify(index.folder).ok
    wanted = {row.sample_id: row for one in data.values() for row in one.train.rows}
    found = ShardReader(StreamIndex.open(index.folder)).read(range(len(index)))
    assert {one.sample_id for one in found} == set(wanted)
    assert all(isinstance(one, Sample) and one == wanted[one.sample_id].load() for one in found)
