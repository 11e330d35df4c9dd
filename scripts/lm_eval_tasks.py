"""Tasks of lm_eval with examples from local files, for the scripts that compare `altiplano eval tasks` with it."""

import json


def local_task(manager, name, files, examples, shots, count):
    """The task as lm_eval has it, but for where its examples are: in `FILES_examples.jsonl` and `FILES_shots.jsonl`."""
    paths = {}
    for split, rows in (("examples", examples), ("shots", shots)):
        if rows:
            path = files.with_name(f"{files.name}_{split}.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            paths[split] = str(path)
    config = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": paths},
        "training_split": "shots" if shots else None,
        "validation_split": None,
        "fewshot_split": "shots" if shots else None,
        "test_split": "examples",
        "num_fewshot": count,
    }
    if shots:
        config["fewshot_config"] = {"sampler": "first_n"}
    return manager._factory.build(manager._entry(name), overrides=config, registry=manager._index)
