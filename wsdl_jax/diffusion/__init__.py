"""The forger: a small diffusion model that makes fakes of images, or parts of them."""
