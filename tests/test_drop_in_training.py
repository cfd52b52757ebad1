"""Training an accelerated model: Trainer, gradient checkpointing, adapters, a frozen tower."""

import pytest
import torch
from transformers import (
    ViTForImageClassification,
    ViTModel,
)

import vit_fast
from models import hf_model, images
from twins import PIXELS, assert_fast, assert_same, reason, twins

CLASSES = [ViTModel, ViTForImageClassification]


class Photographs(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.pixels, self.labels = images(8, 3, 32, 32), torch.arange(8) % 5

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer(checkpointing, tmp_path):
    """Two steps, an evaluation after each: the gradients and the weights are those of transformers."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Gradients(TrainerCallback):
        def __init__(self) -> None:
            self.seen = []

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.seen.append({n: p.grad.clone() for n, p in model.named_parameters()})

    runs = []
    for model in twins(ViTForImageClassification, hidden_dropout_prob=0.1):
        model.requires_grad_(True)
        arguments = TrainingArguments(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            seed=0,
            gradient_checkpointing=checkpointing,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            logging_steps=1,
            learning_rate=1e-2,
            disable_tqdm=True,
        )
        gradients, data = Gradients(), Photographs()
        trainer = Trainer(
            model, arguments, train_dataset=data, eval_dataset=data, callbacks=[gradients]
        )
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        runs.append((gradients.seen, losses, dict(model.named_parameters()), model))
    (theirs, losses, weights, _), (ours, our_losses, our_weights, fast) = runs
    assert len(ours) == len(theirs) == len(losses) == 2
    for step, expected in zip(ours, theirs):
        assert all(torch.equal(step[name], expected[name]) for name in expected)
    assert all(torch.equal(our_weights[name], weights[name]) for name in weights)
    assert our_losses == pytest.approx(losses, abs=1e-5)
    # evaluation ran on the engine, training did not
    (found,) = vit_fast.explain(fast)
    assert found.fast_calls == 2
    assert found.other_calls == 2
    again = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(again.classifier.weight, our_weights["classifier.weight"])


def test_gradient_checkpointing(pair):
    grads = []
    for model in pair:
        model.requires_grad_(True).train()
        model.gradient_checkpointing_enable()
        model(PIXELS)[0].square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 30
    assert all(map(torch.equal, *grads))
    for model in pair:
        model.eval()
    assert_fast(pair[1], pair[0], PIXELS)


@pytest.mark.parametrize("order", ["accelerated before", "accelerated after"])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["fc1"], "all-linear"], ids=str)
def test_lora(cls, order, targets):
    """An adapter on a linear layer is never left out, and once it is merged the model is fast again."""
    peft = pytest.importorskip("peft")
    stock, fast = twins(cls)
    if order == "accelerated after":
        fast = vit_fast.restore(fast)
    else:
        assert_fast(fast, stock, PIXELS)
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    wrapped = []
    for model in (stock, fast):
        torch.manual_seed(0)
        wrapped.append(peft.get_peft_model(model, config).eval().requires_grad_(False))
    vit_fast.accelerate(wrapped[1])
    theirs, ours = (model(PIXELS) for model in wrapped)
    assert "merge adapters" in reason(fast)
    assert_same(ours, theirs)
    with torch.no_grad():
        assert not torch.allclose(ours[0], hf_model(cls)(PIXELS)[0], atol=1e-2)
    assert not vit_fast.explain(wrapped[1])[0].fast
    stock, merged = (model.merge_and_unload().requires_grad_(False) for model in wrapped)
    assert merged is fast
    assert_fast(merged, stock, PIXELS)


def test_an_adapter_that_is_merged_before_a_call():
    """PEFT writes through .data, and puts the same layer back: nothing but that tells."""
    peft = pytest.importorskip("peft")
    stock, fast = twins(ViTModel)
    before = assert_fast(fast, stock, PIXELS).last_hidden_state
    for model in (stock, fast):
        torch.manual_seed(3)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        assert peft.get_peft_model(model, config).merge_and_unload() is model
    with torch.no_grad():
        assert not torch.equal(fast(PIXELS).last_hidden_state, before)
    assert_fast(fast, stock, PIXELS)


def test_lora_with_a_trained_classifier():
    peft = pytest.importorskip("peft")
    stock, fast = twins(ViTForImageClassification)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["classifier"])
    results = []
    for model in (stock, fast):
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, config)
        wrapped(PIXELS, labels=torch.tensor([0, 1])).loss.backward()
        results.append({n: p.grad for n, p in wrapped.named_parameters() if p.requires_grad})
    assert len(results[0]) == 2 * 2 + 2
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
