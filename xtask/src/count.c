/* A plugin of QEMU that counts what a program for aarch64 executes; `cargo xtask count` builds and
   runs it. Declared below is what it needs of version 1 of QEMU's plugin interface. */

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, void (*)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(uint64_t, void (*)(uint64_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

int qemu_plugin_version = 1;

static uint64_t all, multiply_adds;

/* FMLA of four floats, by a vector or by an element of one. */
static int is_multiply_add(const struct qemu_plugin_insn *insn)
{
    uint32_t code;
    memcpy(&code, qemu_plugin_insn_data(insn), sizeof code);
    return (code & 0xffe0fc00) == 0x4e20cc00 || (code & 0xffc0f400) == 0x4f801000;
}

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
    size_t n = qemu_plugin_tb_n_insns(block), found = 0;
    for (size_t i = 0; i < n; i++)
        found += is_multiply_add(qemu_plugin_tb_get_insn(block, i));
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &all, n);
    if (found)
        qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &multiply_adds, found);
}

static void told(uint64_t id, void *none)
{
    fprintf(stderr, "\nexecuted %" PRIu64 " %" PRIu64 "\n", all, multiply_adds);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, told, NULL);
    return 0;
}
