package oops

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// consoles returns the logs of testdata/consoles by path. boot-* were printed
// by a 6.12.117 kernel under QEMU (some with a function's code overwritten to
// make it fail), cut to their ends; mail-* come from mailing lists; made-* and
// harmless-* are written after the kernel's sources and reports of other
// versions.
func consoles(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/consoles/*.log")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no console logs in testdata/consoles: %v", err)
	}
	logs := make(map[string][]byte)
	for _, path := range paths {
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		logs[path] = log
	}
	return logs
}

// golden is what stands beside a log: what was found and after how many lines
// it was complete (0: never), and the same with WARNINGs where that differs.
type golden struct {
	Report   *Report `json:"report"`
	Complete int     `json:"complete_at_line"`
	Warnings *golden `json:"with_warnings,omitempty"`
}

func classifyByLine(console []byte, warnings bool) golden {
	var g golden
	c := NewClassifier(warnings)
	for i, line := range bytes.SplitAfter(console, []byte("\n")) {
		c.Write(line)
		if g.Complete == 0 && c.Complete() {
			g.Complete = i + 1
		}
	}
	if r, crashed := c.Report(); crashed {
		g.Report = &r
	}
	return g
}

func TestConsoles(t *testing.T) {
	for path, log := range consoles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			got := classifyByLine(log, false)
			if w := classifyByLine(log, true); !cmp.Equal(w, got) {
				got.Warnings = &w
			}
			file := strings.TrimSuffix(path, ".log") + ".json"
			if *update {
				text, err := json.MarshalIndent(got, "", "\t")
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v; go test -update writes it", err)
			}
			var want golden
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("differs from %s (-want +got), go test -update rewrites it:\n%s", file, diff)
			}
			if strings.HasPrefix(filepath.Base(path), "harmless-") && (got.Report != nil || got.Warnings != nil) {
				t.Errorf("a harmless console is taken for a crash: %+v", got)
			}
		})
	}
}

// TestEveryRule asks for a log for each row of the table.
func TestEveryRule(t *testing.T) {
	seen := make(map[*rule]bool)
	for _, log := range consoles(t) {
		for _, line := range bytes.Split(log, []byte("\n")) {
			messages(Clean(bytes.Clone(line)), func(m message) {
				if r, _ := match(m.text); r != nil {
					seen[r] = true
				}
			})
		}
	}
	if len(rules) == 0 {
		t.Fatal("no rules")
	}
	for i := range rules {
		if !seen[&rules[i]] {
			t.Errorf("no log of testdata/consoles begins a report by rule %d: %s, %s", i, rules[i].kind, rules[i].anchor)
		}
	}
}

// TestOtherBoot classifies every log as another boot would have printed it:
// other addresses, times, process ids and registers, another line ending.
func TestOtherBoot(t *testing.T) {
	changes := []struct {
		re   *regexp.Regexp
		repl string
	}{
		{regexp.MustCompile(`\bf{8}[0-9a-f]{8}\b`), "ffffffff9d28d270"},
		{regexp.MustCompile(`\bff[0-9a-f]{14}\b`), "ff2413ab81e957c0"},
		{regexp.MustCompile(`(\[ *\d+\.)\d{6}\]`), "${1}999999]"},
		{regexp.MustCompile(`(P?PID: )\d+`), "${1}31337"},
		{regexp.MustCompile(`(\b[a-z]+)\[\d+\]`), "${1}[31337]"},
		{regexp.MustCompile(`\.llvm\.\d+`), ".llvm.1"},
		{regexp.MustCompile(`\r?\n`), "\r\n"},
	}
	for path, log := range consoles(t) {
		other := log
		for _, c := range changes {
			other = c.re.ReplaceAll(other, []byte(c.repl))
		}
		for _, warnings := range []bool{false, true} {
			want, wantCrash := Classify(log, warnings)
			got, crash := Classify(other, warnings)
			if crash != wantCrash || got.Title != want.Title || got.Function != want.Function {
				t.Errorf("%s, another boot: %v %+v, want %v %+v", path, crash, got, wantCrash, want)
			}
		}
	}
}

// checkLaws are the laws of FuzzClassify, for one console.
func checkLaws(t *testing.T, console []byte, warnings bool, chunk int) {
	want, wantCrash := Classify(console, warnings)
	c := NewClassifier(warnings)
	var complete *Report
	for rest := console; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
		c.Write(rest[:min(chunk, len(rest))])
		if complete == nil && c.scan.complete() {
			r, crashed := c.Report()
			if !crashed {
				t.Fatal("complete without a crash")
			}
			complete = &r
		}
	}
	got, crash := c.Report()
	if got != want || crash != wantCrash {
		t.Fatalf("in chunks of %d: %v %+v, at once: %v %+v", chunk, crash, got, wantCrash, want)
	}
	if complete != nil && *complete != got {
		t.Fatalf("complete as %+v, changed to %+v", *complete, got)
	}
	excerpt := Excerpt(console, warnings)
	if crash != (excerpt != nil) || crash && strings.TrimSpace(excerpt[0]) != got.Line {
		t.Fatalf("%v %q, and the excerpt is %q", crash, got.Line, excerpt)
	}
	if !crash {
		if got != (Report{}) {
			t.Fatalf("no crash, and yet %+v", got)
		}
		return
	}
	if got.Title == "" || len(got.Title) > 120 || got.Title != strings.Join(strings.Fields(got.Title), " ") {
		t.Fatalf("title %q: want single-spaced words of at most 120 bytes", got.Title)
	}
	for _, b := range []byte(got.Title + got.Line + got.Function) {
		if b < ' ' || b > '~' {
			t.Fatalf("byte %#x in %+v", b, got)
		}
	}
	if got.Kind == "" || len(got.Line) > LineMax {
		t.Fatalf("kind %q, line of %d bytes", got.Kind, len(got.Line))
	}
	if n := len(c.scan.frames); n > maxFrames {
		t.Fatalf("%d frames", n)
	}
}

func TestChunks(t *testing.T) {
	for path, log := range consoles(t) {
		for _, chunk := range []int{1, 7, 100, 4096} {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(path), chunk), func(t *testing.T) {
				checkLaws(t, log, false, chunk)
				checkLaws(t, log, true, chunk)
			})
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, log := range consoles(f) {
		f.Add(log[max(0, len(log)-4000):], true, uint8(3))
	}
	for _, r := range rules {
		f.Add([]byte(r.hint+" F+0x1/0x2 [#1]\n"), false, uint8(1))
	}
	f.Add([]byte("\x00\x1b[31mOops: \x00int3\xff: 0000 [#1]\x1b]0;F"), true, uint8(0))
	f.Fuzz(func(t *testing.T, console []byte, warnings bool, chunk uint8) {
		checkLaws(t, console, warnings, 1)
		checkLaws(t, console, warnings, 1+int(chunk))
	})
}

// escapeRE is what escape does, in short and slowly.
var escapeRE = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)`)

// FuzzClean: a line loses its escape sequences and keeps all that is printable.
func FuzzClean(f *testing.F) {
	for _, line := range []string{
		"plain", "\x1b", "\x1b\x1b[", "\x1b[1;31 qred\x1b[0m", "\x1b]0;title\x07text", "\x1b]0;title\x1b\\text", "\x1b]0\x1b[1mtext",
		"\x1b(Btext", "\x1b #8", "\x1b[\x00", "\x1b]\xff\xfe\\", "a\x00b\xffc\td", "\x1b]\\", "\x1b[31\x1b]8;;\x07x",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		want := escapeRE.ReplaceAll(line, nil)
		for i, b := range want {
			if b < ' ' || b > '~' {
				want[i] = ' '
			}
		}
		if got := Clean(bytes.Clone(line)); !bytes.Equal(got, want) {
			t.Errorf("Clean(%q) = %q, want %q", line, got, want)
		}
	})
}

func TestCompleteBeforeLineEnds(t *testing.T) {
	c := NewClassifier(false)
	c.Write([]byte("\n\ninvalid magic\n\n -- System halt"))
	if c.Complete() {
		t.Error("complete before the last word")
	}
	c.Write([]byte("ed"))
	if !c.Complete() {
		t.Error("not complete: the decompressor prints no more")
	}
	if r, _ := c.Report(); r.Title != "decompressor: invalid magic" {
		t.Errorf("title %q", r.Title)
	}
}

func TestBounded(t *testing.T) {
	c := NewClassifier(true)
	block := bytes.Repeat([]byte("x"), 1<<20)
	for range 16 {
		c.Write(block)
	}
	c.Write([]byte("\nOops: int3: 0000 [#1]\n"))
	for range 16 {
		c.Write(block)
	}
	if n := cap(c.lines.partial) + cap(c.scan.previous); n > 16<<10 {
		t.Errorf("%d bytes held", n)
	}
	if r, crashed := c.Report(); !crashed || r.Title != "int3" {
		t.Errorf("%v %+v", crashed, r)
	}
}

func TestStripPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"[    1.234567] hello":                "hello",
		"[12345.234567][  T12]  hello \r\n":   "hello",
		"<6>[    0.000000][    C0] hello":     "hello",
		"[    1.234567] a [    2.345678] b":   "b",
		"PASS[    2.345678] b":                "PASS[    2.345678] b",
		"\x1b[1;31m[    1.234567] red\x1b[0m": "red",
		"\x1b]0;title\x07\x1bcplain\x1b(B":    "plain",
		"[    1.2345] not a timestamp":        "[    1.2345] not a timestamp",
		"[T12] caller only":                   "caller only",
		"[Tx] text":                           "[Tx] text",
		"":                                    "",
		"   ":                                 "",
		"<4>":                                 "",
		"[    1.234567]":                      "",
		"caf\xc3\xa9":                         "caf",
		"a\tb":                                "a b",
		"] .123456] [.123456] [ .123456] 1.123456]": "] .123456] [.123456] [ .123456] 1.123456]",
	} {
		line := []byte(in)
		if got := string(Text(line)); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
		if string(line) != in {
			t.Errorf("Text(%q) changed its argument to %q", in, line)
		}
	}
}

func TestCleanSymbol(t *testing.T) {
	for in, want := range map[string]string{
		"xfrm4_dst_lookup.llvm.2597333927409562488+0xac/0xc0": "xfrm4_dst_lookup",
		"foo.cold":                 "foo",
		"foo.part.0.constprop.0":   "foo",
		"foo.isra.0.cold+0x1":      "foo",
		"__pfx___cfi_foo":          "foo",
		"__pfx_":                   "__pfx_",
		"__x64_sys_reboot":         "sys_reboot",
		"__do_sys_reboot":          "sys_reboot",
		"__se_sys_reboot.llvm.7":   "sys_reboot",
		"__ia32_compat_sys_execve": "sys_execve",
		"do_sys_openat2":           "do_sys_openat2",
		"SyS_timer_create":         "sys_timer_create",
		"__SCT__might_resched+0x0": "__SCT__might_resched",
	} {
		if got := cleanSymbol(in); got != want {
			t.Errorf("cleanSymbol(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestPlumbing(t *testing.T) {
	for _, f := range []string{
		"panic", "__warn", "warn_slowpath_fmt", "refcount_warn_saturate", "dump_stack_lvl", "kasan_report", "__asan_load8", "_raw_spin_lock_irqsave",
		"native_queued_spin_lock_slowpath", "mutex_lock", "down_read", "memcpy", "memcpy_orig", "__memset", "strlen", "strncpy", "strscpy", "rep_movs_alternative", "_copy_to_user",
		"__list_add_valid_or_report", "rb_erase", "rb_insert_color", "_printk", "vprintk_emit", "asm_exc_page_fault", "exc_invalid_op",
		"its_return_thunk", "__x86_return_thunk", "__x86_indirect_thunk_r11", "srso_alias_return_thunk", "handle_bug", "report_bug",
	} {
		if !idle(f) {
			t.Errorf("%s is blamed", f)
		}
	}
	for _, f := range []string{
		"do_exit", "kernel_restart", "panic_notifier_frob", "vfs_write", "stress_test", "memory_failure", "string_nocheck", "device_shutdown",
		"diet_init", "warp_core", "download_firmware", "update_process_times", "structure_init", "__schedule", "locks_remove_file", "rebalance",
	} {
		if idle(f) {
			t.Errorf("%s is never blamed", f)
		}
	}
}

func BenchmarkClassify(b *testing.B) {
	log, err := os.ReadFile("testdata/consoles/boot-pass.log")
	if err != nil {
		b.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"boot":   bytes.Repeat(log, 1<<20/len(log)),
		"yes":    bytes.Repeat([]byte("y\n"), 1<<19),
		"noline": bytes.Repeat([]byte("]"), 1<<20),
	} {
		text = bytes.ReplaceAll(text, []byte("Linux version "), []byte("Linux-version "))
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				Classify(text, false)
			}
		})
	}
}
