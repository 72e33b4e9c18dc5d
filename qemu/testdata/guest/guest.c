/*
 * A kernel of some hundred bytes, entered by the PVH protocol (32-bit, flat
 * segments, no paging). It prints its command line to the first serial port,
 * where a backslash and a letter are
 *
 *	\n \r \e	line feed, carriage return, escape
 *	\l		loop: begin again at the start of the command line
 *	\t		triple fault, by an undefined instruction
 *	\i		triple fault, by int3 (some nested KVMs cannot do it)
 *
 * Anything else, or the end of the line, halts.
 */

/* XEN_ELFNOTE_PHYS32_ENTRY is 18 (xen/include/public/elfnote.h). */
__asm__(
	".section .note.pvh, \"a\", @note\n"
	"	.balign 4\n"
	"	.long 4, 4, 18\n"
	"	.asciz \"Xen\"\n"
	"	.long _start\n"
	".text\n"
	".globl _start\n"
	"_start:\n"
	"	movl $stack_top, %esp\n"
	"	pushl %ebx\n"
	"	call run\n"
	".bss\n"
	"	.balign 16\n"
	"	.skip 4096\n"
	"stack_top:\n"
	".text\n");

/* struct hvm_start_info (xen/include/public/arch-x86/hvm/start_info.h), which %ebx points to. */
struct start_info {
	unsigned int magic, version, flags, nr_modules;
	unsigned long long modlist_paddr, cmdline_paddr;
};

/* An IDT without entries: the first exception is the last. */
static const struct {
	unsigned short limit;
	unsigned int base;
} __attribute__((packed)) no_idt;

static void put(char c)
{
	__asm__ volatile("outb %0, %1" : : "a"(c), "d"((unsigned short)0x3f8));
}

static void halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void run(const struct start_info *info)
{
	const char *line = (const char *)(unsigned int)info->cmdline_paddr;

	for (const char *p = line; *p; p++) {
		if (*p != '\\') {
			put(*p);
			continue;
		}
		switch (*++p) {
		case 'n':
			put('\n');
			break;
		case 'r':
			put('\r');
			break;
		case 'e':
			put('\033');
			break;
		case 'l':
			p = line - 1;
			break;
		case 't':
			__asm__ volatile("lidt %0; ud2" : : "m"(no_idt));
			break;
		case 'i':
			__asm__ volatile("lidt %0; int3" : : "m"(no_idt));
			break;
		default:
			halt();
		}
	}
	halt();
}
