import torch


class DeepSpeedPPOTrainer:
    def __init__(self, engines):
        self.engines = engines

    @torch.no_grad()
    def generate_experience(self, prompts):
        engines = self.engines
        ids = engines.actor.module.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_length=24, pad_token_id=1, do_sample=False
        )
        logits, reference = engines.actor(ids).logits, engines.ref(ids).logits
        rewards, values = engines.reward.forward_value(ids), engines.critic.forward_value(ids)
        return ids, logits - reference, rewards - values

    def train_rlhf(self, ids, drift, advantage):
        actor, critic = self.engines.actor, self.engines.critic
        actor_loss = (actor(ids).logits - drift).pow(2).mean()
        actor.backward(actor_loss)
        actor.step()
        critic_loss = (critic.forward_value(ids) - advantage).pow(2).mean()
        critic.backward(critic_loss)
        critic.step()
        return actor_loss, critic_loss


class DeepSpeedPPOTrainerUnsupervised(DeepSpeedPPOTrainer):
    def train_unsupervised(self, ids):
        actor = self.engines.actor
        loss = actor(ids).logits.pow(2).mean()
        actor.backward(loss)
        actor.step()
        return loss
