#!/usr/bin/env bash
# A real model learns on one GPU: SFT on human solutions, then dr_grpo and dagrpo, each evaluated on 500 problems.
# By the formula of harness/sizes.py about 10 minutes on one H100 with SmolLM2-135M. It has not run on a GPU yet: it was
# rehearsed on a CPU, with the flags of the second line below, which go to analysis.real_run.
#
#   analysis/bench/gpu_run.sh MODEL_DIR gsm8k_train.parquet gsm8k_test.parquet OUT
#   analysis/bench/gpu_run.sh MODEL_DIR gsm8k_train.parquet gsm8k_test.parquet OUT \
#       --steps 1 --sft-steps 1 --sft-batch 8 --prompts 2 --tokens 64 --problems 8
#
# Everything is written into OUT as it goes (report.md, curves.png, the runs); the same command goes on where it stopped.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
model=$1 train=$2 test=$3 out=$4
shift 4
cd "$(dirname "$0")/../.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
mkdir -p "$out"
{ nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || echo "no GPU"; } 2>/dev/null | tee "$out/gpu.txt"
exec "$python" -m analysis.real_run --plan gpu --model "$model" --train "$train" --test "$test" --out "$out" "$@"
