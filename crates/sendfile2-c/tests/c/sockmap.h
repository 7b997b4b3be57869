/* A BPF sockmap with a program that lets everything pass, as a service mesh has it. */
#ifndef SOCKMAP_H
#define SOCKMAP_H

#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int sockmap_bpf(int command, union bpf_attr *attr)
{
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

/* The map, or -1 and errno. */
static inline int sockmap_new(void)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_SOCKMAP;
    attr.key_size = attr.value_size = 4;
    attr.max_entries = 1;
    int map = sockmap_bpf(BPF_MAP_CREATE, &attr);
    if (map < 0)
        return -1;
    struct bpf_insn pass[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = SK_PASS },
                               { .code = BPF_JMP | BPF_EXIT } };
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_SK_MSG;
    attr.expected_attach_type = BPF_SK_MSG_VERDICT;
    attr.insns = (uintptr_t)pass;
    attr.insn_cnt = 2;
    attr.license = (uintptr_t) "GPL";
    int program = sockmap_bpf(BPF_PROG_LOAD, &attr);
    if (program < 0)
        return -1;
    memset(&attr, 0, sizeof attr);
    attr.target_fd = (unsigned)map;
    attr.attach_bpf_fd = (unsigned)program;
    attr.attach_type = BPF_SK_MSG_VERDICT;
    return sockmap_bpf(BPF_PROG_ATTACH, &attr) ? -1 : map;
}

static inline int sockmap_put(int map, int socket)
{
    int key = 0;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = (unsigned)map;
    attr.key = (uintptr_t)&key;
    attr.value = (uintptr_t)&socket;
    return sockmap_bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

static inline int sockmap_take(int map)
{
    int key = 0;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = (unsigned)map;
    attr.key = (uintptr_t)&key;
    return sockmap_bpf(BPF_MAP_DELETE_ELEM, &attr);
}

#endif
