"""DeiT (Touvron et al. 2021, arXiv:2012.12877): a ViT with a distillation token behind the class token.

The classifier takes the class token; with a teacher, two of them take the two tokens, and their mean is the answer.
"""

from torch import nn
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
)
from transformers.models.deit import modeling_deit
from transformers.utils import ModelOutput

from vit_fast.families.calls import Answer, Request, output_of
from vit_fast.families.family import Form, Sources
from vit_fast.families.modules import child, parameters_of
from vit_fast.families.vit import LikeViT, answer_classifier, answer_encoder, layout_of_vit

_HEADS = ("cls_classifier", "distillation_classifier")


def _answer_teacher(model: PreTrainedModel, request: Request, found: Answer) -> ModelOutput:
    cls_logits = model.cls_classifier(found.tokens[:, 0, :])
    distillation_logits = model.distillation_classifier(found.tokens[:, 1, :])
    return output_of(
        modeling_deit.DeiTForImageClassificationWithTeacherOutput,
        logits=(cls_logits + distillation_logits) / 2,
        cls_logits=cls_logits,
        distillation_logits=distillation_logits,
        hidden_states=found.states,
        attentions=None,
    )


class _DeiT(LikeViT):
    model_type = "deit"
    modeling = modeling_deit
    forms = {
        DeiTModel: Form(answer_encoder, called=("pooler",), captures=True),
        DeiTForImageClassification: Form(
            answer_classifier, encoder="deit", rows=1, called=("classifier",)
        ),
        DeiTForImageClassificationWithTeacher: Form(
            _answer_teacher, encoder="deit", rows=2, called=_HEADS
        ),
    }
    layouts = (
        layout_of_vit(modeling_deit.DeiTLayer, modeling_deit.DeiTAttention, modeling_deit.DeiTMLP),
    )
    embeddings = modeling_deit.DeiTEmbeddings
    patches = modeling_deit.DeiTPatchEmbeddings
    pooler = modeling_deit.DeiTPooler
    tokens = ("cls_token", "distillation_token")
    fused = ("class token", "distillation token", "learned positions")

    def head(self, model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[dict, Sources]:
        if not isinstance(model, DeiTForImageClassificationWithTeacher):
            return super().head(model, encoder)
        if type(model.cls_classifier) is nn.Identity:
            return {}, {}
        ours = ("head", "head_dist")
        found = {a: parameters_of(a, child(model, b, nn.Linear)) for a, b in zip(ours, _HEADS)}
        fields = dict(num_labels=model.cls_classifier.out_features, distillation_head=True)
        return fields, found["head"] | found["head_dist"]


FAMILY = _DeiT()
