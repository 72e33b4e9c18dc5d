package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"unlucky/cli"
	"unlucky/qemu/oops"
	"unlucky/seeds"
)

// Bundles of real kernels: what a developer wants to read is in the text, and
// run.sh and replay show the crash by QEMU alone.
func TestBundle(t *testing.T) {
	needKernels(t)
	for _, test := range []struct {
		scenario, seeds string
		minimize        bool
		want            []string // regexps, in this order in the text
	}{
		{"kcfi-seal", "14", false, []string{
			`^Subject: \[BUG\] int3 in kernel_power_off: depends on the layout of the image\n`,
			`\nOops: int3: 0000 \[#1\] SMP\n`, `\nRIP: 0010:kernel_power_off\+0x`, `\n  int3|  int3  <-- trapping instruction\n`,
			`\nRIP is behind kernel_power_off, which has 0x\w+ bytes\.\n`,
			`\n  source    Debian's linux-source-6\.12 6\.12\.\S+,\s+without\s+seal-mend\.patch`,
		}},
		{"kcfi-seal", "44", false, []string{
			`^Subject: \[BUG\] invalid opcode in copy_process: `, `\nOops: invalid opcode: 0000 `,
			`  <-- RIP is \d+ bytes? into it: control went astray\n`, `  <-- trapping instruction\n`,
		}},
		{"canary", "1:32", true, []string{
			`^Subject: \[BUG\] invalid opcode in canary_reboot: depends on the layout of the image\n`,
			`\nLinux 6\.12\.\d+ crashes in 3 of 3 boots \(invalid opcode in\ncanary_reboot\)`,
			"\nIt crashes when `canary_victim` is at 0x30 mod 0x100; moved alone by 16\nbytes it passes\\.\n",
			`\nThe same image passes with unlucky=none on the kernel command line\.\n`,
			`\nOops: invalid opcode: 0000 \[#1\] SMP\n`, `\nRIP: 0010:canary_reboot\+0x`, `\nCall Trace:\n <TASK>\n blocking_notifier_call_chain\+0x`,
			`\n---\[ end trace 0000000000000000 \]---\n`,
			`\ncanary_reboot\+0x\w+ +e8 [\w ]+  callq 0xffffffff\w+ <canary_victim>\n`,
			`\ncanary_reboot\+0x\w+ +0f 0b +ud2  <-- trapping instruction\n`,
			`\nffffffff81\w+30  canary_victim\n`, // in a register
			`\n  canary-\d+/run\.sh\n`, `\n  unlucky replay canary-\d+\.tar\.zst\n`,
			`\nWhat decides\n`, `\n  0 +0x30 +fails`, `\n  16 +0x40 +passes`,
			`\n  kernel    Linux version 6\.12`, `\n  source    Debian's linux-source-6\.12 6\.12\.\S+,\s+with\s+seal-mend\.patch`, `LTO_CLANG_THIN=y`, `\n  toolchain clang \d+`,
		}},
	} {
		t.Run(test.scenario+" "+test.seeds, func(t *testing.T) {
			r := sweepJSON(t, test.scenario, "-seeds", test.seeds, "-accel", "tcg", "-stop-after", "1", "-o", t.TempDir())
			if r.Finds() != 1 {
				t.Fatal(count(r))
			}
			path := filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path)
			if test.scenario == "kcfi-seal" { // whose baseline is one, too
				for _, l := range r.Layouts {
					path = filepath.Join(r.Dir, l.Path)
				}
			}
			if test.minimize {
				if code, out := unlucky(t, "minimize", path); code != 0 {
					t.Fatal(code, out)
				}
			}
			saved, err := seeds.Read(path)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "a.tar.zst")
			code, out := unlucky(t, "bundle", path, "-o", file)
			t.Log(out)
			code2, _ := unlucky(t, "bundle", path, "-o", filepath.Join(dir, "b.tar.zst"))
			a, err1 := os.ReadFile(file)
			b, err2 := os.ReadFile(filepath.Join(dir, "b.tar.zst"))
			if code != 0 || code2 != 0 || err1 != nil || err2 != nil || !bytes.Equal(a, b) {
				t.Fatalf("status %d and %d, %v, %v, of %d and %d bytes", code, code2, err1, err2, len(a), len(b))
			}
			if code, out := unlucky(t, "replay", file, "-boots", "2"); code != 0 || !strings.Contains(out, "reproduced in 2 of 2 boots") {
				t.Errorf("replay: %d, %s", code, out)
			}
			if code, out := unlucky(t, "replay", file, "-boots", "1", "-append", "unlucky=none cfi=off"); code != cli.ExitNo {
				t.Errorf("replay without it: %d, %s", code, out)
			}

			to := filepath.Join(dir, "unpacked")
			if err := os.Mkdir(to, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := seeds.Unpack(t.Context(), file, to, func(int64, int64) {}); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(to, seeds.ReportFile))
			if err != nil {
				t.Fatal(err)
			}
			rest := text
			for _, want := range test.want {
				at := regexp.MustCompile(want).FindIndex(rest)
				if at == nil {
					t.Fatalf("no %s behind\n%s\nin\n%s", want, bytes.TrimSuffix(text, rest), rest)
				}
				rest = rest[max(at[1]-1, 0):] // the next may begin with the same end of line
			}
			if i := bytes.IndexFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
				t.Errorf("no ASCII: %.20q", text[i:])
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(to, seeds.RunFile))
			console, err := cmd.Output()
			if report, _ := oops.Classify(console, false); err != nil || report.Title != saved.Title {
				t.Errorf("run.sh: %v, %q, want %q", err, report.Title, saved.Title)
			}
		})
	}
}
