"""The training step of a diffusion model in PyTorch."""

import jax
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_side import DEVICE, NotComparable, Side, wait
from ldm_jax.keys import normal, sample_keys, stream
from ldm_jax.ldm import CONDITION_STREAM, NOISE_STREAM, POSTERIOR_STREAM, T_STREAM


class TrainStep:
    """Encode, noise, UNet, mean squared error, gradient, fused AdamW, EMA. A call is a step with new noise.

    Our step also computes the norms of gradient and parameters and the terms that it logs; this one does not.
    """

    def __init__(self, side: Side, size: int):
        config, task = side.model.config, side.model.task
        c = config.conditioner
        if c.kind != "class" and (c.drop_prob or jax.tree.leaves(side.model.state.params["conditioner"])):
            raise NotComparable(
                f"the training step is compared for models without a learned condition or of classes, not for {c.kind}"
            )
        self.side, self.size, self.task = side, size, task
        self.image = side.tensor(side.model.batch(size)["image"])
        self.context, self.concat = side.cond(size)
        self.table = None
        if c.kind == "class":
            rows = side.model.state.params["conditioner"]["embedding"]["embedding"]
            self.table = torch.nn.Embedding.from_pretrained(side.tensor(rows), freeze=False)
            self.labels = side.tensor(side.model.batch(size)["label"]).long()
            self.drop_prob, self.null = c.drop_prob, len(rows) - 1
        predictions = ("eps", "v")
        if config.diffusion.prediction not in predictions:
            raise NotComparable(
                f"the training step is compared for predictions {' and '.join(predictions)}, not for "
                f"{config.diffusion.prediction}"
            )
        self.predicts_v = config.diffusion.prediction == "v"
        self.clip_norm = config.optim.clip_norm
        self.scale = float(side.model.frozen["latent_scale"])
        self.alpha_bar = torch.tensor(task.ldm.schedule.alpha_bar, dtype=torch.float32, device=DEVICE)
        side.unet.train()
        self.params = [*side.unet.parameters(), *(self.table.parameters() if self.table else ())]
        o = config.optim
        self.optimizer = torch.optim.AdamW(
            self.params, o.learning_rate, (o.b1, o.b2), o.eps, weight_decay=o.weight_decay, fused=True
        )
        self.ema, self.steps = [p.detach().clone() for p in self.params], 0

    def __call__(self) -> torch.Tensor:
        loss = self._gradient()
        self._update()
        return wait(loss)

    def _gradient(self, t=None, noise=None, posterior=None, dropped=None) -> torch.Tensor:
        side, shape = self.side, (self.size, self.side.model.latent[2], *self.side.model.latent[:2])
        with side.cast():
            with torch.no_grad():
                posterior = torch.randn(shape, device=DEVICE) if posterior is None else posterior
                z = self.image if side.vae is None else side.encoder(self.image, posterior).float()
                z = z * self.scale
                t = torch.randint(0, len(self.alpha_bar), (self.size,), device=DEVICE) if t is None else t
                noise = torch.randn_like(z) if noise is None else noise
                a = self.alpha_bar[t][:, None, None, None]
                z_t = a.sqrt() * z + (1 - a).sqrt() * noise
                target = a.sqrt() * noise - (1 - a).sqrt() * z if self.predicts_v else noise
                z_t = z_t if self.concat is None else torch.cat([z_t, self.concat], 1)
            context = self._classes(dropped) if self.table else self.context
            output = side.run_unet(z_t, t, context)
        loss = F.mse_loss(output.float(), target)
        loss.backward()
        return loss

    def _classes(self, dropped) -> torch.Tensor:
        """Embedded labels; of the dropped ones the last row, which means "any"."""
        if not self.drop_prob:
            return self.table(self.labels)[:, None]
        dropped = torch.rand(self.size, device=DEVICE) < self.drop_prob if dropped is None else dropped
        return self.table(torch.where(dropped, self.null, self.labels))[:, None]

    def _update(self) -> None:
        """Clips by the global norm where the recipe does. Gradients are given back at once: kept until the next step
        they would lie in the way of the other side."""
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params, self.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        decay = self.task.averaging.decay
        decay = min(decay, (1 + self.steps) / (10 + self.steps)) if self.task.averaging.warmup else decay
        torch._foreach_lerp_(self.ema, self.params, 1 - decay)

    def check(self) -> np.ndarray:
        """[loss, gradient's norm] of the first step with the noise of our first step."""
        model, tensor = self.side.model, self.side.tensor
        keys = sample_keys(model.state.step_key(), self.size)
        timesteps = model.config.diffusion.timesteps
        t = jax.vmap(lambda k: jax.random.randint(k, (), 0, timesteps))(stream(keys, T_STREAM))
        noise, posterior = (tensor(normal(stream(keys, s), model.latent)) for s in (NOISE_STREAM, POSTERIOR_STREAM))
        drop_prob = model.config.conditioner.drop_prob
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, drop_prob))(stream(keys, CONDITION_STREAM))
        loss = self._gradient(tensor(t).long(), noise, posterior, tensor(dropped))
        norms = torch._foreach_norm([p.grad for p in self.params])
        self._update()
        return np.array([loss.item(), float(torch.linalg.vector_norm(torch.stack(norms)))])
