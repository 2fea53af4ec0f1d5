/* Generators: moments of the arrival laws, Table 2 totals and ranges, prefix structure, the sweep, the grammar. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "traces/generate.h"

static fr_trace *made(const char *spec, fr_trace_options o) {
    fr_trace *t = NULL;
    fr_error err = {0};
    if (fr_trace_open(spec, &o, &t, &err) != FR_OK) fail_msg("%s", err.text);
    return t;
}

static void moments(const char *spec, double rate, double cv) {
    fr_trace *t = made(spec, (fr_trace_options){.seed = 11, .max_requests = 200000});
    int64_t n = fr_trace_count(t), before = 0;
    double sum = 0, squares = 0;
    assert_int_equal(n, 200000);
    for (int64_t i = 0; i < n; i++) {
        double gap = (double)(fr_trace_requests(t)[i].arrival - before) / 1e9;
        before = fr_trace_requests(t)[i].arrival;
        sum += gap;
        squares += gap * gap;
    }
    double mean = sum / (double)n, deviation = sqrt(squares / (double)n - mean * mean);
    /* the mean's error is cv / sqrt(n) of it, four of those; the CV's is larger for heavy tails: 5 % */
    assert_true(fabs(mean * rate - 1) < 4 * cv / sqrt((double)n));
    assert_true(fabs(deviation / mean / cv - 1) < 0.05);
    fr_trace_close(t);
}

static void arrival_laws(void **state) {
    (void)state;
    moments("poisson:rate=12,len=100", 12, 1);
    moments("gamma:rate=3,cv=2.5,len=100", 3, 2.5);
    moments("gamma:rate=300,cv=0.2,len=100", 300, 0.2);
    moments("weibull:rate=0.5,cv=1.7,len=100", 0.5, 1.7);
    moments("weibull:rate=40,cv=0.4,len=100", 40, 0.4);
    /* cv = 1 is the exponential law in both families, shape 1 */
    assert_true(fabs(fr_arrival_law_make(FR_ARRIVAL_WEIBULL, 1).shape - 1) < 1e-9);
    assert_true(fabs(fr_arrival_law_make(FR_ARRIVAL_GAMMA, 1).shape - 1) < 1e-12);
    /* a measured client of ServeGen: shape 0.715179 has CV 1.42567 by the gamma function */
    double k =
        fr_arrival_law_make(FR_ARRIVAL_WEIBULL, sqrt(tgamma(1 + 2 / 0.715179) / pow(tgamma(1 + 1 / 0.715179), 2) - 1))
            .shape;
    assert_true(fabs(k - 0.715179) < 1e-6);
}

static void lengths(void **state) {
    (void)state;
    fr_trace *t = made("poisson:rate=1,len=lognormal(2048,1.2),count=200000", (fr_trace_options){.seed = 2});
    double sum = 0, below = 0, median = 2048 * exp(-0.5 * 1.2 * 1.2);
    for (int64_t i = 0; i < 200000; i++) {
        sum += fr_trace_requests(t)[i].tokens;
        below += fr_trace_requests(t)[i].tokens <= median;
    }
    /* deviation of a length: mean * sqrt(e^(s^2) - 1) = 1.80 means; of the mean of 200,000: 0.4 % */
    assert_true(fabs(sum / 200000 / 2048 - 1) < 0.016);
    assert_true(fabs(below / 200000 - 0.5) < 0.005);
    fr_trace_close(t);

    t = made("batch:count=5000,len=uniform(3,5),prefix=4,groups=7", (fr_trace_options){.seed = 2});
    int seen[6] = {0}, group[7] = {0};
    for (int64_t i = 0; i < 5000; i++) {
        const fr_request *r = &fr_trace_requests(t)[i];
        assert_in_range(r->tokens, 3, 5);
        assert_int_equal(r->prefix_tokens, r->tokens > 4 ? 4 : r->tokens - 1);
        assert_in_range(r->prefix_id, 0, 6);
        assert_int_equal(r->arrival, 0);
        seen[r->tokens]++;
        group[r->prefix_id]++;
    }
    for (int i = 3; i < 6; i++) assert_in_range(seen[i], 1667 - 140, 1667 + 140); /* 4 deviations of 33 */
    for (int i = 0; i < 7; i++) assert_in_range(group[i], 714 - 100, 714 + 100);
    fr_trace_close(t);

    t = made("poisson:rate=12,len=trace(azure-code),count=10000", (fr_trace_options){.seed = 3});
    fr_trace_summary s;
    fr_trace_describe(t, &s);
    assert_true(fabs((double)s.tokens / 10000 / 2047.8 - 1) < 0.05); /* data/README.md: mean 2,048 */
    fr_trace_close(t);
    t = made("poisson:rate=100,len=9,min=20", (fr_trace_options){.duration_s = 10, .seed = 4});
    assert_in_range(fr_trace_count(t), 1000 - 130, 1000 + 130);
    assert_int_equal(fr_trace_requests(t)[0].tokens, 20);
    fr_trace_close(t);
}

static void table2_totals(void **state) {
    (void)state;
    fr_trace *t = made("table2", (fr_trace_options){.seed = 1});
    const fr_table2_set *set;
    int64_t count[6] = {0}, tokens[6] = {0}, all = 0;
    for (int64_t i = 0; i < fr_trace_count(t); i++) {
        const fr_request *r = &fr_trace_requests(t)[i];
        set = fr_table2_at(r->source);
        assert_in_range(r->tokens, set->low, set->high);
        count[r->source]++;
        tokens[r->source] += r->tokens;
        all += r->tokens;
    }
    for (int i = 0; (set = fr_table2_at(i)); i++) {
        assert_int_equal(count[i], set->count);
        assert_int_equal(tokens[i], set->tokens);
        assert_string_equal(fr_trace_source(t, i), set->name);
    }
    assert_int_equal(fr_trace_count(t), 73800); /* the paper's last row: 73.8K, 37.9M */
    assert_int_equal(all, 37900000);
    fr_trace_close(t);
    t = made("table2:scale=0.01", (fr_trace_options){.seed = 1});
    assert_int_equal(fr_trace_count(t), 240 + 240 + 120 + 120 + 12 + 6);
    fr_trace_summary s;
    fr_trace_describe(t, &s);
    assert_true(llabs(s.tokens - 379000) < 6);
    assert_int_equal(s.span, 0);
    fr_trace_close(t);
}

/* The cut exponential at k = 0 is uniform; and the totals hold at the ends of the range. */
static void table2_law(void **state) {
    (void)state;
    int32_t out[101];
    fr_table2_lengths(0, 1000, 101, 50500, out);
    for (int i = 0; i < 101; i++) assert_true(fabs(out[i] - (i + 0.5) * 1000 / 101) <= 1);
    const int64_t totals[] = {101 * 10, 101 * 10 + 1, 101 * 15, 101 * 29 + 28, 101 * 30 - 1, 101 * 30};
    for (int i = 0; i < 6; i++) {
        int64_t sum = 0;
        fr_table2_lengths(10, 30, 101, totals[i], out);
        for (int k = 0; k < 101; k++) {
            assert_in_range(out[k], 10, 30);
            if (k) assert_true(out[k] >= out[k - 1]);
            sum += out[k];
        }
        assert_int_equal(sum, totals[i]);
    }
    /* a mean low in a long range: exponential, so that its median is mean * ln 2 */
    static int32_t many[10001];
    fr_table2_lengths(1, 1000000, 10001, 10001 * 1000ll, many);
    assert_true(abs(many[5000] - 693) < 5);
}

static int by_id(const void *a, const void *b) {
    const fr_request *x = a, *y = b;
    return x->prefix_id < y->prefix_id ? -1 : x->prefix_id > y->prefix_id;
}

static void table2_prefixes(void **state) {
    (void)state;
    fr_trace *t = made("table2", (fr_trace_options){.seed = 1});
    int64_t n = fr_trace_count(t);
    fr_request *r = fr_alloc((size_t)n * sizeof *r);
    memcpy(r, fr_trace_requests(t), (size_t)n * sizeof *r);
    qsort(r, (size_t)n, sizeof *r, by_id);
    double shared[6] = {0}, total[6] = {0};
    for (int64_t i = 0, next; i < n; i = next) {
        for (next = i; next < n && r[next].prefix_id == r[i].prefix_id; next++) {
            assert_int_equal(r[next].source, r[i].source);
            assert_int_equal(r[next].prefix_tokens, r[i].prefix_tokens); /* one prefix, one length */
            shared[r[next].source] += r[next].prefix_tokens;
            total[r[next].source] += r[next].tokens;
        }
        const fr_table2_set *set = fr_table2_at(r[i].source);
        assert_int_equal(next - i, set->sharing == 2 ? 8 : set->sharing == 1 ? 4 : set->count);
    }
    for (int i = 0; i < 6; i++) { /* below the nominal share only by rounding and the spread within a group */
        static const double nominal[] = {0.1, 0.5, 0.8};
        double share = shared[i] / total[i], want = nominal[fr_table2_at(i)->sharing];
        assert_true(share <= want);
        if (fr_table2_at(i)->sharing) assert_true(share > want - 0.02);
    }
    free(r);
    fr_trace_close(t);
    t = made("table2:scale=0.1,high=0,medium=0,low=0,order=grouped", (fr_trace_options){.seed = 1});
    for (int64_t i = 0; i < fr_trace_count(t); i++) {
        assert_int_equal(fr_trace_requests(t)[i].prefix_tokens, 0);
        if (i) assert_true(fr_trace_requests(t)[i].source >= fr_trace_requests(t)[i - 1].source);
    }
    fr_trace_close(t);
}

/* Order siblings: every prefix of a high or medium set is one run of its requests; data sets are mixed. */
static void siblings_stay_together(void **state) {
    (void)state;
    fr_trace *t = made("table2:scale=0.05,order=siblings", (fr_trace_options){.seed = 3});
    fr_trace *plain = made("table2:scale=0.05", (fr_trace_options){.seed = 3});
    const fr_request *r = fr_trace_requests(t);
    int64_t count = fr_trace_count(t), runs = 0, prefixes = 0, changes = 0, sum = 0, plain_sum = 0;
    assert_int_equal(count, fr_trace_count(plain));
    char *seen = calloc((size_t)count * 2, 1);
    for (int64_t i = 0; i < count; i++) {
        sum += r[i].tokens * (r[i].source + 1);
        plain_sum += fr_trace_requests(plain)[i].tokens * (fr_trace_requests(plain)[i].source + 1);
        assert_int_equal(r[i].id, i);
        changes += i && r[i].source != r[i - 1].source;
        if (!fr_table2_at(r[i].source)->sharing) continue;
        runs += i == 0 || r[i].prefix_id != r[i - 1].prefix_id;
        prefixes += !seen[r[i].prefix_id];
        seen[r[i].prefix_id] = 1;
    }
    assert_int_equal(runs, prefixes);
    assert_true(changes > count / 3);
    assert_int_equal(sum, plain_sum);
    free(seen);
    fr_trace_close(plain);
    fr_trace_close(t);
}

static void synthetic_sweep(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int64_t count, tokens;
    } cells[] = {{"synthetic:len=256", 40960, 256},
                 {"synthetic:len=4K", 2560, 4096},
                 {"synthetic:len=32K", 320, 32768},
                 {"synthetic:len=128K", 80, 131072},
                 {"synthetic:len=4096,count=7", 7, 4096}};
    for (int i = 0; i < 5; i++) {
        fr_trace *t = made(cells[i].spec, (fr_trace_options){0});
        assert_int_equal(fr_trace_count(t), cells[i].count);
        assert_int_equal(fr_trace_requests(t)[0].tokens, cells[i].tokens);
        assert_int_equal(fr_trace_requests(t)[0].prefix_id, -1);
        fr_trace_close(t);
    }
    fr_trace *t = made("synthetic:len=4K", (fr_trace_options){.rate = 10, .seed = 6});
    fr_trace_summary s;
    fr_trace_describe(t, &s);
    assert_true(fabs((double)s.span / 1e9 / 256 - 1) < 4 / sqrt(2560));
    fr_trace_close(t);
}

static void equal_seeds_give_equal_requests(void **state) {
    (void)state;
    static const char *const specs[] = {"table2:scale=0.02,rate=50",
                                        "weibull:rate=3,cv=2,len=lognormal(900,1),count=500"};
    for (int i = 0; i < 2; i++) {
        fr_trace *a = made(specs[i], (fr_trace_options){.seed = 9}), *b = made(specs[i], (fr_trace_options){.seed = 9}),
                 *c = made(specs[i], (fr_trace_options){.seed = 10});
        size_t bytes = (size_t)fr_trace_count(a) * sizeof(fr_request);
        assert_int_equal(fr_trace_count(a), fr_trace_count(b));
        assert_memory_equal(fr_trace_requests(a), fr_trace_requests(b), bytes);
        assert_int_not_equal(memcmp(fr_trace_requests(a), fr_trace_requests(c), bytes), 0);
        fr_trace_close(a);
        fr_trace_close(b);
        fr_trace_close(c);
    }
}

static void wrong_specs(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "poisson",
        "poisson:",
        "poisson:rate=12",
        "poisson:len=5",
        "poisson:rate=12,len=",
        "poisson:rate=12,len=5,",
        "poisson:rate=nan,len=5",
        "poisson:rate=-1,len=5",
        "poisson:rate=0,len=5",
        "poisson:rate=1,rate=1,len=5",
        "poisson:rate=1,cv=2,len=5",
        "poisson:rate=1,len=0",
        "poisson:rate=1,len=11M",
        "poisson:rate=1,len=lognormal(5)",
        "poisson:rate=1,len=lognormal(5,2",
        "poisson:rate=1,len=lognormal(5,-2)",
        "poisson:rate=1,len=lognormal(5,2))",
        "poisson:rate=1,len=uniform(9,2)",
        "poisson:rate=1,len=uniform(1,2.5)",
        "poisson:rate=1,len=hist(/nonexistent)",
        "poisson:rate=1,len=trace(batch:len=5)",
        "poisson:rate=1,len=cauchy(1,2)",
        "poisson:rate=1,len=5,min=9,max=8",
        "poisson:rate=1,len=5,groups=2",
        "poisson:rate=1,len=5,count=1e6",
        "gamma:rate=1,len=5",
        "gamma:rate=1,cv=0,len=5",
        "weibull:rate=1,cv=1e9,len=5",
        "batch:rate=1,len=5",
        "table2:scale=0",
        "table2:scale=1e9",
        "table2:order=random",
        "table2:high=1.5",
        "table2:len=5",
        "synthetic",
        "synthetic:len=-4",
        "synthetic:len=(",
        "uniform:len=4",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fr_trace *t = NULL;
        fr_error err = {0};
        if (fr_trace_open(wrong[i], &(fr_trace_options){0}, &t, &err) != FR_BAD_INPUT)
            fail_msg("accepted: %s", wrong[i]);
        assert_true(strlen(err.text) > 10);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrival_laws),    cmocka_unit_test(lengths),
        cmocka_unit_test(table2_totals),   cmocka_unit_test(table2_law),
        cmocka_unit_test(table2_prefixes), cmocka_unit_test(siblings_stay_together),
        cmocka_unit_test(synthetic_sweep), cmocka_unit_test(equal_seeds_give_equal_requests),
        cmocka_unit_test(wrong_specs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
