"""Two devices on a machine that has one: run as a script, by test_several_devices.py.

torch's fake tensors know shapes and devices and hold no numbers; an operation over two devices
raises as it does on real ones. Their second device is torch's empty private one, renamed, which is
why this wants a process of its own. Backward passes know one device of that kind, so they run over
it and the CPU.
"""

import sys
from types import SimpleNamespace

import accelerate
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import dive
from dive.adapter.attach import steer
from dive.backbone import structure
from dive.page.inside import Inside, inside_of
from dive.training.student import Student
from dive.training.trainer import DistillTrainer

WIDTH, ROWS = 32, 6


def replaced(module, change, recurse=True):
    """`nn.Module._apply` for fake parameters, which cannot be swapped in place."""
    for one in module.modules():
        for name, tensor in [*one._parameters.items(), *one._buffers.items()]:
            if tensor is None:
                continue
            held = tensor.detach()
            held.constant = None  # a fake tensor that knows its number cannot move
            moved = change(held)
            if name in one._parameters:
                one._parameters[name] = nn.Parameter(moved, requires_grad=tensor.requires_grad)
            else:
                one._buffers[name] = moved
    return module


def put(module, device):
    module.to(device)
    hook = accelerate.hooks.AlignDevicesHook(device, io_same_device=False)
    accelerate.hooks.add_hook_to_module(module, hook)


def spread(config, first, second, head):
    """A model as a device_map leaves it: embeddings and two layers here, the rest there."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    base = structure.decoder(model)
    put(base.embed_tokens, first)
    put(base.rotary_emb, first)
    for number, layer in enumerate(base.layers):
        put(layer, first if number < 2 else second)
    put(base.norm, second)
    put(model.lm_head, head)
    # its check compares numbers
    own = structure.Head(model.lm_head.weight, None, None)
    structure._heads[model] = structure._head_state(model), own
    return model


def check(config, first, second, head, backward, **settings):
    with FakeTensorMode():
        model = spread(config, first, second, head)
        objective = dive.DistillConfig(rank=2, **settings)
        adapter = dive.SteeringAdapter(objective.steering(), model)
        with steer(model, adapter) as attachment:
            devices = [adapter.layers[str(n)].up.device for n in range(3)]
            assert devices == [torch.device(d) for d in (first, first, second)], devices
            student = Student(attachment, objective)
            here = {"device": torch.device(first)}  # where Trainer puts a batch
            ids = torch.ones(2, 7, dtype=torch.long, **here)
            loss, parts = student(
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                positions=torch.ones(2, 7, dtype=torch.bool, **here),
                index=torch.zeros(ROWS, dtype=torch.long, **here),
                targets=torch.zeros(ROWS, dtype=torch.long, **here),
                weights=torch.ones(ROWS, **here),
                classes=torch.zeros(ROWS, dtype=torch.long, **here),
                teacher_hidden=torch.ones(ROWS, WIDTH, **here),
                normalizer=torch.ones((), **here),
                kd_normalizer=torch.ones((), **here),
            )
            assert loss.device == torch.device(head), loss.device
            nothing = SimpleNamespace(add=lambda *_: None)
            trainer = SimpleNamespace(
                _examples=SimpleNamespace(studies=[], model_inputs=lambda inputs, shown: inputs),
                _teacher=None, _watch=nothing, _meter=nothing, _look_at_once=False,
                args=SimpleNamespace(world_size=1, device=torch.device(first)),
                state=SimpleNamespace(global_step=0),
            )  # fmt: skip
            batch = {"inputs": {}, "studies": [], "response_lengths": []}
            own = DistillTrainer.compute_loss(trainer, lambda **_: (loss, parts), batch)
            assert own.device == torch.device(first), "Trainer wants the loss on its own device"
            if backward:
                own.backward()
                trained = [p for p in adapter.parameters() if p.requires_grad]
                assert all(p.grad is not None and p.grad.device == p.device for p in trained)
                assert len({p.device for p in trained}) == 2
                nn.utils.clip_grad_norm_(trained, 1.0)
                torch.optim.AdamW(trained).step()
            with torch.no_grad():
                known = structure.output_head(model)
                inside = inside_of(attachment, known, {"input_ids": ids[:1]}, [5, 6, 7], [7, 8])
            assert inside.end.device == inside.strength.device == torch.device("cpu")


def main(folder):
    _setup_privateuseone_for_python_backend("pretend")
    nn.Module._apply = replaced
    Inside.finite = True  # there are no numbers
    config = transformers.AutoConfig.from_pretrained(folder)
    places = [
        ("pretend:0", "pretend:1", "pretend:1", False),
        ("pretend:0", "pretend:1", "pretend:0", False),  # a head that is tied to the embeddings
        ("pretend:0", "cpu", "cpu", True),
        ("pretend:0", "cpu", "pretend:0", True),
        ("cpu", "pretend:0", "pretend:0", True),
    ]
    for first, second, head, backward in places:
        for settings in ({}, {"positions": "response"}, {"align_weight": 1.0}, {"preset": "live"}):
            check(config, first, second, head, backward, **settings)
            print(first, second, head, settings, "ok")


if __name__ == "__main__":
    main(sys.argv[1])
