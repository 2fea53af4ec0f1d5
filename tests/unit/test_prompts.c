/* Requests as token ids: what is read, what is refused and where, and the answers' lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/prompts.h"

static fr_status parse(const char *text, fr_prompts *p, fr_error *err) {
    return fr_prompts_parse(text, strlen(text), "p.jsonl", 100, p, err);
}

static void test_reads_and_answers(void **state) {
    (void)state;
    fr_prompts p;
    fr_error err = {0};
    fr_text out = {0};
    float logits[100] = {0};
    assert_int_equal(
        parse("{\"id\":\"a\\n\",\"ids\":[1,2,99],\"candidates\":[7,5]}\r\n\n{\"id\":3,\"ids\":[0]}\n", &p, &err),
        FR_OK);
    assert_int_equal(p.count, 2);
    assert_int_equal(p.tokens, 4);
    assert_int_equal(p.longest, 3);
    assert_int_equal(p.most_candidates, 2);
    assert_true(p.vocabulary);
    logits[0] = 1.5f;
    logits[1] = 1.5f; /* a tie goes to the candidate named first */
    fr_prompt_answer(&p.prompts[0], logits, 100);
    logits[42] = 2.25f;
    fr_prompt_answer(&p.prompts[1], logits, 100);
    fr_prompts_write(&p, &out);
    assert_string_equal(out.text, "{\"id\":\"a\\n\",\"logits\":[1.5,1.5],\"argmax\":7}\n"
                                  "{\"id\":3,\"logits\":[2.25],\"argmax\":42}\n");
    fr_text_free(&out);
    p.prompts[0].logits[1] = NAN;
    fr_prompts_write(&p, &out);
    assert_non_null(strstr(out.text, "[1.5,null]"));
    fr_text_free(&out);
    fr_prompts_free(&p);
}

/* Prompts share exactly the whole blocks of what they have in common. */
static void test_blocks(void **state) {
    (void)state;
    char text[4096] = "", ids[600] = "";
    for (int i = 0; i < 2 * FR_PROMPT_BLOCK + 10; i++)
        snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%d", i ? "," : "", i % 50);
    snprintf(text, sizeof text, "{\"id\":0,\"ids\":[%s]}\n{\"id\":1,\"ids\":[%s,3]}\n{\"id\":2,\"ids\":[9,%s]}\n", ids,
             ids, ids);
    fr_prompts p;
    fr_error err = {0};
    assert_int_equal(parse(text, &p, &err), FR_OK);
    for (int b = 0; b < 2; b++) {
        assert_true(p.prompts[0].blocks[b] == p.prompts[1].blocks[b]);
        assert_true(p.prompts[0].blocks[b] != p.prompts[2].blocks[b]);
    }
    assert_true(p.prompts[0].blocks[0] != p.prompts[0].blocks[1]);
    fr_prompts_free(&p);
}

static void refused(const char *text, const char *part) {
    fr_prompts p;
    fr_error err = {0};
    assert_int_equal(parse(text, &p, &err), FR_BAD_INPUT);
    if (!strstr(err.text, part) || !strstr(err.text, "p.jsonl")) fail_msg("'%s' lacks '%s'", err.text, part);
}

static void test_refuses(void **state) {
    (void)state;
    refused("", "no request");
    refused("\n\n", "no request");
    refused("{\"id\":1,\"ids\":[1]}\n{\"id\":2,\"ids\":[100]}\n", "line 2");
    refused("{\"id\":1,\"ids\":[-1]}", "ids");
    refused("{\"id\":1,\"ids\":[]}", "at least one");
    refused("{\"id\":1}", "ids");
    refused("{\"ids\":[1]}", "id");
    refused("{\"id\":1.5,\"ids\":[1]}", "id");
    refused("{\"id\":1,\"ids\":[1],\"candidate\":[1]}", "candidate");
    refused("{\"id\":1,\"ids\":[1],\"candidates\":[100]}", "candidates");
    refused("{\"id\":1,\"ids\":[1]} x", "line 1");
    refused("[1]", "object");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads_and_answers), cmocka_unit_test(test_blocks),
                                       cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
