"""I-JEPA (Assran et al. 2023, arXiv:2301.08243): a ViT without a class token; a classifier takes the mean of all."""

from transformers import IJepaForImageClassification, IJepaModel
from transformers.models.ijepa import modeling_ijepa

from vit_fast.families.family import Form
from vit_fast.families.vit import LikeViT, answer_encoder, layout_of_vit


class _IJepa(LikeViT):
    model_type = "ijepa"
    modeling = modeling_ijepa
    forms = {IJepaModel: Form(answer_encoder, called=("pooler",), captures=True)}
    # its head needs all tokens
    holders = {IJepaForImageClassification: "ijepa"}
    layouts = (
        layout_of_vit(
            modeling_ijepa.IJepaLayer, modeling_ijepa.IJepaAttention, modeling_ijepa.IJepaMLP
        ),
    )
    embeddings = modeling_ijepa.IJepaEmbeddings
    patches = modeling_ijepa.IJepaPatchEmbeddings
    pooler = modeling_ijepa.IJepaPooler
    tokens = ()
    fused = ("learned positions",)


FAMILY = _IJepa()
