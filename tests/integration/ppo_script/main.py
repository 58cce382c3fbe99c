"""PPO as DeepSpeed-Chat's third stage has it: same classes, same order of calls, a thousandth of the size.

Knows nothing of agprof. Prints the losses of each iteration; with `--unsupervised` it trains on plain text besides.
"""

import argparse
import sys

import deepspeed
import torch
from torch.utils.data import DataLoader

# the shared-memory operator needs a compiler, and only inference needs the operator
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None

from dschat.rlhf.ppo_trainer import DeepSpeedPPOTrainer, DeepSpeedPPOTrainerUnsupervised  # noqa: E402
from dschat.rlhf.rlhf_engine import DeepSpeedRLHFEngine  # noqa: E402
from dschat.utils.utils import moving_average  # noqa: E402

ITERATIONS = 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--unsupervised", dest="unsupervised_dataset_name", action="store_const", const="text")
    parser.add_argument("--local_rank", type=int)
    args = parser.parse_args()
    args.per_device_generation_batch_size, args.generation_batches, args.ppo_epochs = 4, 1, 1
    args.max_prompt_seq_len, args.max_answer_seq_len, args.dtype = 8, 16, "fp32"
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    engines = DeepSpeedRLHFEngine(args=args)
    trainer = (DeepSpeedPPOTrainerUnsupervised if args.unsupervised_dataset_name else DeepSpeedPPOTrainer)(engines)
    for prompts in DataLoader(torch.randint(3, 128, (4 * ITERATIONS, 8)), batch_size=4):
        losses = trainer.train_rlhf(*trainer.generate_experience(prompts))
        if args.unsupervised_dataset_name:
            losses = (*losses, trainer.train_unsupervised(prompts))
        moving_average(engines.actor, engines.actor_ema)
        if torch.distributed.get_rank() == 0:
            print("losses", *(loss.item() for loss in losses), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
