#include "sim/grid.h"

#include "engine/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_AXES   48
#define MAX_VALUES 4096

/* One option with the values that it takes, as command-line texts. */
typedef struct {
    char name[48];
    char **values;
    int count;
} axis;

typedef struct {
    axis axes[MAX_AXES];
    int count;
    int64_t cells;
} product;

struct fr_grid {
    char title[256];
    char about[2048];
    product base; /* every axis has one value */
    product *products;
    int products_count;
    int64_t cells;
};

static void product_free(product *p) {
    for (int a = 0; a < p->count; a++) {
        for (int v = 0; v < p->axes[a].count; v++) free(p->axes[a].values[v]);
        free(p->axes[a].values);
    }
}

void fr_grid_close(fr_grid *g) {
    if (!g) return;
    product_free(&g->base);
    for (int i = 0; i < g->products_count; i++) product_free(&g->products[i]);
    free(g->products);
    free(g);
}

static fr_status axis_value(const fr_json *at, const char *key, json_t *value, axis *a, fr_error *err) {
    char number[64];
    const char *text = fr_json_text_of(value, number, sizeof number);
    if (!text) return fr_json_fail(at, key, err, "expected a text, a number, true or false");
    if (!json_is_string(value) && fr_experiment_wants_text(key))
        return fr_json_fail(at, key, err, "expected a text in quotes, got %s", text);
    fr_experiment scratch;
    fr_experiment_defaults(&scratch);
    fr_error why;
    if (fr_experiment_set(&scratch, key, text, &why) != FR_OK) return fr_json_fail(at, key, err, "%s", why.text);
    a->values[a->count++] = fr_strdup(text);
    return FR_OK;
}

static fr_status read_product(const fr_json *object, bool lists, product *p, fr_error *err) {
    const char *key;
    json_t *value;
    p->cells = 1;
    json_object_foreach(object->value, key, value) {
        if (p->count == MAX_AXES || strlen(key) >= sizeof p->axes[0].name)
            return fr_json_fail(object, key, err, "expected at most %d options with known names", MAX_AXES);
        axis *a = &p->axes[p->count++];
        strcpy(a->name, key);
        size_t n = json_is_array(value) ? json_array_size(value) : 1;
        if (n == 0 || n > MAX_VALUES || (json_is_array(value) && !lists))
            return fr_json_fail(
                object, key, err,
                lists ? "expected 1 to %d values" : "expected one value, not a list (at most %d in cells)", MAX_VALUES);
        a->values = fr_alloc(n * sizeof *a->values);
        for (size_t i = 0; i < n; i++)
            FR_TRY(axis_value(object, key, json_is_array(value) ? json_array_get(value, i) : value, a, err));
        p->cells *= (int64_t)n;
        if (p->cells > FR_GRID_MAX_CELLS)
            return fr_json_fail(object, key, err, "the grid has more than %d cells", FR_GRID_MAX_CELLS);
    }
    return FR_OK;
}

static fr_status read_cells(const fr_json *root, fr_grid *g, fr_error *err) {
    fr_json cells;
    FR_TRY(fr_json_array(root, "cells", FR_OPTIONAL, &cells, err));
    size_t n = cells.value ? fr_json_count(&cells) : 0;
    if (cells.value && n == 0) return fr_json_fail(&cells, NULL, err, "expected at least one object of options");
    g->products = fr_alloc((n ? n : 1) * sizeof *g->products);
    if (n == 0) {
        g->products_count = 1;
        g->products[0].cells = 1;
    }
    for (size_t i = 0; i < n; i++) {
        fr_json item;
        fr_json_item(&cells, i, &item);
        FR_TRY(fr_json_as_object(&item, err));
        FR_TRY(read_product(&item, true, &g->products[g->products_count++], err));
    }
    for (int i = 0; i < g->products_count; i++) g->cells += g->products[i].cells;
    if (g->cells > FR_GRID_MAX_CELLS)
        return fr_json_fail(root, "cells", err, "the grid has more than %d cells", FR_GRID_MAX_CELLS);
    return FR_OK;
}

static fr_status read_root(const fr_json *root, fr_grid *g, fr_error *err) {
    static const char *const known[] = {"title", "about", "base", "cells", NULL};
    const char *key;
    json_t *value;
    json_object_foreach(root->value, key, value) {
        for (const fr_option *o = fr_experiment_options(); o->name; o++)
            if (strcmp(o->name, key) == 0)
                return fr_json_fail(root, key, err, "options belong in \"base\": {...} or \"cells\": [{...}]");
    }
    FR_TRY(fr_json_only(root, known, err));
    FR_TRY(fr_json_text(root, "title", FR_OPTIONAL, g->title, sizeof g->title, err));
    FR_TRY(fr_json_text(root, "about", FR_OPTIONAL, g->about, sizeof g->about, err));
    fr_json base;
    FR_TRY(fr_json_object(root, "base", FR_OPTIONAL, &base, err));
    if (base.value) FR_TRY(read_product(&base, false, &g->base, err));
    return read_cells(root, g, err);
}

static fr_status finish(fr_json *root, fr_status status, fr_grid **out, fr_error *err) {
    if (status != FR_OK) return status;
    fr_grid *g = fr_alloc(sizeof *g);
    status = read_root(root, g, err);
    fr_json_close(root);
    if (status == FR_OK)
        *out = g;
    else
        fr_grid_close(g);
    return status;
}

fr_status fr_grid_open(const char *path, fr_grid **out, fr_error *err) {
    fr_json root;
    return finish(&root, fr_json_open_file(path, &root, err), out, err);
}

fr_status fr_grid_parse(const char *text, size_t length, const char *where, fr_grid **out, fr_error *err) {
    fr_json root;
    return finish(&root, fr_json_open(text, length, where, &root, err), out, err);
}

const char *fr_grid_title(const fr_grid *g) {
    return g->title;
}
int64_t fr_grid_count(const fr_grid *g) {
    return g->cells;
}
fr_status fr_grid_cell(const fr_grid *g, int64_t index, fr_experiment *out, fr_error *err) {
    fr_experiment_defaults(out);
    for (int a = 0; a < g->base.count; a++)
        FR_TRY(fr_experiment_set(out, g->base.axes[a].name, g->base.axes[a].values[0], err));
    int i = 0;
    for (; index >= g->products[i].cells; i++) index -= g->products[i].cells;
    const product *p = &g->products[i];
    int choice[MAX_AXES];
    for (int a = p->count - 1; a >= 0; a--) {
        choice[a] = (int)(index % p->axes[a].count);
        index /= p->axes[a].count;
    }
    for (int a = 0; a < p->count; a++)
        FR_TRY(fr_experiment_set(out, p->axes[a].name, p->axes[a].values[choice[a]], err));
    return FR_OK;
}
