"""The forger: a small diffusion model, trained and used to make fakes of images or parts of them."""
