/*
 * gemm: dense products through cublasLt, bf16 or block-scaled e4m3 (kernels/fp8.h), with the chosen algorithm kept per
 * shape.
 *
 * out [M, N] = x [M, K] * w [N, K]^T (+ add [M, N]), row-major, fp32 accumulation; out is bf16 or fp32. Algorithms that
 * split K reduce through the workspace in a fixed order, so equal inputs give equal bits. One object serves one device
 * and one host thread at a time.
 */
#ifndef FR_GEMM_H
#define FR_GEMM_H

#include "engine/base.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fr_gemm fr_gemm;

/* Refuses a cublasLt whose major.minor differs from the headers built against. */
fr_status fr_gemm_open(fr_gemm **out, fr_error *err);
void fr_gemm_close(fr_gemm *g);

typedef struct {
    const fr_bf16 *x, *w, *add; /* add: NULL, or [M, N] bf16; may be out itself */
    void *out;
    int64_t M, N, K;
    int64_t like_M;  /* takes the algorithm that a product of so many rows has; 0: of M. Where M varies from call to
                        call, a few such numbers spare asking for each (3 to 5 ms of host time on Hopper, measured) */
    bool out_f32;    /* then add must be NULL */
    void *workspace; /* 256-byte aligned; 32 MiB serves every algorithm cublasLt offers on Hopper */
    size_t workspace_bytes;
    /* Not NULL: x and w are fr_e4m3 with these scales, x's of pitch M. M is a multiple of 4 (the pitch cublasLt takes),
     * N and K of 128; out is bf16, no add. Measured on an H200, it gives the bits of fr_k_grouped_fp8, 4 to 17 %
     * sooner. */
    const float *x_scale, *w_scale;
} fr_gemm_args;

/* The first call of a shape asks cublasLt's heuristics (some 10 us of host time); later ones only launch. M = 0 does
 * nothing. */
fr_status fr_gemm_run(fr_gemm *g, const fr_gemm_args *args, cudaStream_t stream, fr_error *err);

/* Run-time version of cublasLt as major * 10000 + minor * 100 + patch. */
int64_t fr_gemm_version(void);

#ifdef __cplusplus
}
#endif
#endif
