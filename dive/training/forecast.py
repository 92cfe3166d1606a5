"""The forecast of what a training will take, which is shown before its first step."""

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.structure import text_config
from dive.decisive.tokens import CLASS_NAMES
from dive.errors.counting import counted
from dive.prompting.prompter import Prompter
from dive.training.config import VISUAL, DistillConfig
from dive.training.preparation import Prepared
from dive.training.ranks import world_size
from dive.training.survey import Survey
from dive.training.visual_weights import BUFFERS, CHUNK_BYTES

GIB = 1 << 30


def forecast_text(prepared: Prepared) -> str:
    """Tokens per image, lengths of prompts, decisive shares, memory and steps, as lines of text."""
    request, survey = prepared.request, prepared.survey
    config, adapter = request.inputs.config, request.adapter
    longest, usual = Survey.quantiles(survey.prompt_lengths)
    images = sum(survey.images)
    per_image = f", {sum(survey.image_tokens) / images:.0f} tokens each" if images else ""
    report, usual_report = Survey.quantiles(survey.response_lengths)
    total = max(sum(survey.class_counts), 1)
    shares = ", ".join(
        f"{name.lower()} {100 * count / total:.1f}%"
        for name, count in zip(CLASS_NAMES, survey.class_counts, strict=True)
    )
    lines = [
        f"preset {config.preset}: {adapter.num_parameters():,} parameters, rank {config.rank}, "
        f"{counted(len(adapter.layers), 'layer')}",
        f"{counted(len(survey.studies), 'study')}, {counted(images, 'image')}{per_image}",
        f"student prompt: at most {longest} tokens, 95% within {usual}; "
        f"report: at most {report}, 95% within {usual_report}",
    ]
    if prepared.teacher_lengths is None:
        lines.append("no teacher is run")
    else:
        most, most_often = Survey.quantiles(prepared.teacher_lengths)
        lines.append(f"teacher prompt: at most {most} tokens, 95% within {most_often}")
        if prepared.visual is not None:
            prompts, usual = 1 + prepared.visual.images.most, int(config.learns_from_teacher)
            lines.append(
                f"visual weights: {prompts} teacher prompts per study instead of {usual}, when it "
                "is first learnt from"
            )
    if prepared.decision_share is not None:  # else the teacher's prompts tell the classes
        lines += [f"tokens of the reports: {shares}", str(prepared.decision_share)]
    tokens = config.batch_size * (longest + report)
    memory = training_bytes(config, request.prompter, adapter, tokens)
    lines.append(
        f"memory: about {memory / GIB:.1f} GiB for {tokens} tokens per forward"
        + ("" if config.gradient_checkpointing else " (less with gradient_checkpointing)")
    )
    each = config.batch_size * config.gradient_accumulation * world_size()
    lines.append(f"{counted(prepared.steps, 'step')} of {counted(each, 'study')}")
    return "\n".join(lines)


def training_bytes(
    config: DistillConfig, prompter: Prompter, adapter: SteeringAdapter, tokens: int
) -> int:
    """A rough estimate: weights, adapter with gradient and AdamW's two moments, activations.

    The activations of one token in one layer are about six hidden states and three inner states of
    the MLP; with gradient checkpointing one hidden state per layer, and one layer in full.
    """
    text = text_config(prompter.backbone.model)
    size = prompter.backbone.dtype.itemsize
    weights = sum(p.numel() * p.element_size() for p in prompter.backbone.model.parameters())
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = (6 * text.hidden_size + 3 * inner) * size
    layers = len(adapter.layers)
    if config.gradient_checkpointing:
        activations = tokens * (layers * text.hidden_size * size + layer)
    else:
        activations = tokens * layers * layer
    visual = BUFFERS * CHUNK_BYTES if config.decisive == VISUAL else 0
    return weights + 16 * adapter.num_parameters() + max(activations, visual)
