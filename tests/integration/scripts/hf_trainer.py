"""Hugging Face's Trainer on a tiny GPT-2: one process or several, with or without a DeepSpeed file."""

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed


class Sequences(torch.utils.data.Dataset):
    def __init__(self, count):
        self.tokens = torch.randint(0, 128, (count, 24), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Losses(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "loss" in logs:
            print(f"loss {logs['loss']!r} norm {logs.get('grad_norm')!r}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed")
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--eval", action="store_true")
    options = parser.parse_args()
    set_seed(11)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=6,
            logging_steps=1,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            eval_strategy="steps" if options.eval else "no",
            eval_steps=3,
            disable_tqdm=True,
            deepspeed=options.deepspeed,
        )
        config = GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
                            eos_token_id=0)  # fmt: skip
        trainer = Trainer(
            model=GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=Sequences(64),
            eval_dataset=Sequences(8) if options.eval else None,
            callbacks=[Losses()],
        )
        trainer.train()
    if trainer.is_world_process_zero():
        done = trainer.state.global_step
        print(f"done {done} steps {done * arguments.gradient_accumulation_steps} micro-steps")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
