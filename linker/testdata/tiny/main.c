/*
 * Some hundred functions of different sizes, and one, victim(), whose address
 * matters: with "canary" on the command line the guest crashes at shutdown
 * when it is at 0x20 modulo 64; "canary=off" mends that.
 */
struct start_info {
	unsigned int magic, version, flags, nr_modules;
	unsigned long modlist_paddr, cmdline_paddr;
};

static void put(const char *s)
{
	for (; *s; s++)
		__asm__ volatile("outb %0, %1" : : "a"(*s), "d"((unsigned short)0x3f8));
}

static int has(const char *line, const char *word)
{
	for (; *line; line++) {
		int i = 0;

		while (word[i] && line[i] == word[i])
			i++;
		if (!word[i])
			return 1;
	}
	return 0;
}

#define FILL(n) \
	__attribute__((noinline)) int fill##n(int x) \
	{ \
		__asm__ volatile(".skip %c0, 0x90" : : "i"((__COUNTER__ * 37) % 90)); \
		return x + n; \
	}
#define FILL10(n) FILL(n##0) FILL(n##1) FILL(n##2) FILL(n##3) FILL(n##4) \
	FILL(n##5) FILL(n##6) FILL(n##7) FILL(n##8) FILL(n##9)
#define FILL50(n) FILL10(n##1) FILL10(n##2) FILL10(n##3) FILL10(n##4) FILL10(n##5)

FILL50(1) FILL50(2) FILL50(3)

__attribute__((noinline)) int victim(int x)
{
	__asm__ volatile("");
	return x ^ 1;
}

FILL50(4) FILL50(5) FILL50(6)

const int table[] = { 3, 1, 4, 1, 5 };
int data = 7;
static int calls;

static void shutdown(const char *line)
{
	unsigned long at = (unsigned long)victim;

	__asm__("" : "+r"(at));
	if (has(line, "canary") && !has(line, "canary=off") && at % 64 == 0x20) {
		put("Oops: invalid opcode: 0000 [#1] SMP\n"
		    "CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.0 #1\n"
		    "RIP: 0010:canary_reboot+0x1b/0x20\n"
		    "Call Trace:\n <TASK>\n kernel_restart+0x1/0x2\n </TASK>\n"
		    "---[ end trace 0000000000000000 ]---\n");
		for (;;)
			__asm__ volatile("cli; hlt");
	}
}

void run(const struct start_info *info)
{
	const char *line = (const char *)info->cmdline_paddr;
	static const struct {
		unsigned short limit;
		unsigned long base;
	} __attribute__((packed)) no_idt;

	put("tiny: hello\n");
	calls += victim(data) + table[2];
	if (has(line, "hang"))
		for (;;)
			__asm__ volatile("cli; hlt");
	shutdown(line);
	put("tiny: goodbye\n");
	__asm__ volatile("lidt %0; ud2" : : "m"(no_idt));
}
