/* The part of the kernel's scripts/sorttable.c that matters: tables of stack frames, exceptions, calls. */
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *image;

static Elf64_Shdr *section(const char *name)
{
	Elf64_Ehdr *head = (void *)image;
	Elf64_Shdr *s = (void *)(image + head->e_shoff);
	const char *names = (void *)(image + s[head->e_shstrndx].sh_offset);

	for (int i = 0; i < head->e_shnum; i++)
		if (!strcmp(names + s[i].sh_name, name))
			return s + i;
	exit(2);
}

struct row {
	uint64_t to[2];
	uint8_t rest[6];
};

static int compare(const void *a, const void *b)
{
	static const uint8_t end[6];
	const struct row *r = a, *s = b;

	if (r->to[0] != s->to[0])
		return r->to[0] < s->to[0] ? -1 : 1;
	return !memcmp(s->rest, end, 6) - !memcmp(r->rest, end, 6);
}

/* Rows of some fields that say how far off they are, and of bytes at another place. */
static void sort(Elf64_Shdr *s, int fields, int size, uint8_t *rest, int bytes, int step)
{
	int n = s->sh_size / size;
	struct row *rows = calloc(n, sizeof(*rows));
	uint8_t *at = image + s->sh_offset;

	for (int i = 0; i < n; i++) {
		for (int f = 0; f < fields; f++)
			rows[i].to[f] = s->sh_addr + i * size + 4 * f + *(int32_t *)(at + i * size + 4 * f);
		memcpy(rows[i].rest, rest + i * step, bytes);
	}
	qsort(rows, n, sizeof(*rows), compare);
	for (int i = 0; i < n; i++) {
		for (int f = 0; f < fields; f++)
			*(int32_t *)(at + i * size + 4 * f) = rows[i].to[f] - (s->sh_addr + i * size + 4 * f);
		memcpy(rest + i * step, rows[i].rest, bytes);
	}
}

static int address(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

int main(int argc, char **argv)
{
	FILE *f = fopen(argv[1], "r+");
	long size;

	if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 0)
		return 1;
	image = malloc(size);
	rewind(f);
	if (fread(image, 1, size, f) != size)
		return 1;
	sort(section(".orc_unwind_ip"), 1, 4, image + section(".orc_unwind")->sh_offset, 6, 6);
	sort(section("__ex_table"), 2, 12, image + section("__ex_table")->sh_offset + 8, 4, 12);
	qsort(image + section(".mcount")->sh_offset, section(".mcount")->sh_size / 8, 8, address);
	rewind(f);
	return fwrite(image, 1, size, f) != size || fclose(f);
}
