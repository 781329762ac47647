"""What a run's manifest records before the run starts."""

from llmshearing.checkpoints.manifest import (
    CacheRecord,
    DataRecord,
    HeldOutRecord,
    RunManifest,
    TeacherRecord,
)
from llmshearing.config import Recipe
from llmshearing.huggingface.source import Source
from llmshearing.huggingface.weight_files import weights_digest
from llmshearing.preflight import Inputs
from llmshearing.quantities import steps


def run_manifest(recipe: Recipe, inputs: Inputs) -> RunManifest:
    """The part of a run's manifest that does not change during the run. All ranks call it."""
    source, tree, cache = inputs.source, inputs.tree, inputs.cache
    train, held_out = (
        {name: info.fingerprint for name, info in tree.split(split).items()}
        for split in (recipe.data.split, recipe.data.eval_split)
    )
    return RunManifest(
        recipe=recipe.model_dump(),
        source=source.record(),
        data=DataRecord(
            root=str(tree.root),
            sequence_length=tree.sequence_length,
            tokenizer=tree.tokenizer,
            fingerprints=train,
            held_out=HeldOutRecord(held_out, recipe.data.eval_rows),
        ),
        teacher=_teacher_record(inputs),
        cache=None if cache is None else CacheRecord(str(cache.root), cache.fingerprint),
        tokens=steps(recipe.run.duration) * recipe.data.global_batch * tree.sequence_length,
    )


def _teacher_record(inputs: Inputs) -> TeacherRecord | None:
    if inputs.cache is not None:
        return TeacherRecord(**inputs.cache.teacher)
    return None if inputs.teacher is None else teacher_record(inputs.teacher)


def teacher_record(teacher: Source) -> TeacherRecord:
    """What manifests say of a teacher. All ranks call it."""
    return TeacherRecord(str(teacher.path.resolve()), teacher.config, weights_digest(teacher.path))
