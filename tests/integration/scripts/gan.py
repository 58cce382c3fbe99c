"""Two optimizers in turn: the discriminator on real and on fake samples, then the generator."""

import torch
from torch import nn

torch.manual_seed(2)
generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)

micro_steps = 0
for _ in range(8):
    discriminator_optimizer.zero_grad()
    real_loss = criterion(discriminator(torch.randn(16, 2) + 3), ones)
    real_loss.backward()
    fake = generator(torch.randn(16, 8))
    fake_loss = criterion(discriminator(fake.detach()), zeros)
    fake_loss.backward()
    discriminator_optimizer.step()

    generator_optimizer.zero_grad()
    generator_loss = criterion(discriminator(fake), ones)
    generator_loss.backward()
    generator_optimizer.step()
    micro_steps += 3
    print(f"loss {real_loss.item()!r} {fake_loss.item()!r} {generator_loss.item()!r}")
print(f"done 8 steps {micro_steps} micro-steps")
