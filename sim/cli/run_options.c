/* Options of forerun run: listed by every build, acted on by the CUDA build (engine/cuda/cmd_run.c). */
#include "sim/cli/cli.h"

const fr_option cmd_run_options[] = {
    {"json", NULL, NULL, "one JSON object"},
    {"weights", "DIR", NULL, "a checkpoint's folder (config.json, safetensors); default: seeded random weights"},
    {"prompts", "FILE", NULL, "requests as JSONL {id, ids, candidates}, in place of --tokens or --trace"},
    {"answers", "FILE", NULL, "where the prompts' answers go, JSONL {id, logits, argmax}"},
    {"record-routing", "FILE", NULL, "write tokens per expert and layer, for simulate --routing file:FILE"},
    {"logits", "FILE", NULL, "write all logits of batch mode: a line of JSON, then float32 (README)"},
    {"fit-rounds", "N", NULL,
     "random weights: corrections of the injected routing, default 4; 0 = the same bias in every layout"},
    {"sequence-base", "N", NULL, "number of the first sequence of batch mode: token ids follow from it, default 0"},
    {"anchors", "FILE", NULL,
     "rows of `calibrate --anchors` taken on this machine just now, kept with the run in --db"},
    {"warmup", "S", NULL, "seconds back to back before the clock starts; default 10 sustained, 0 burst"},
    {"timeout", "S", NULL, "longest wait for the device, default 60"},
    {"device", "N", NULL, "GPU of rank 0, default 0; the other ranks are on the next ones"},
    {"procs", NULL, NULL, "a process per rank in place of a thread"},
    {"inject", "FAULT", NULL, "stall:RANK:FORWARD, fail:RANK:FORWARD, oom:RANK or slow:RANK:MS: a fault on purpose"},
    {"no-spans", NULL, NULL, "do not time single ops"},
    {"no-predict", NULL, NULL, "do not simulate the same cell beside it"},
    {"check-ops", NULL, NULL, "wait after every op, so that a failing one is named; slow"},
    {"db", "FILE", NULL, "store the run with its forwards, requests and timeline (SQLite)"},
    {"perfetto", "FILE", NULL, "write the timeline for Perfetto or chrome://tracing (JSON)"},
    {"csv", "FILE", NULL, "write the timeline as CSV"},
    {NULL, NULL, NULL, NULL},
};
