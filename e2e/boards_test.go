package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// The examples of guest.command: virtme-ng and a script of one's own boot the layouts of
// boot, and give the verdicts that QEMU does.
func TestExampleCommands(t *testing.T) {
	needKernels(t)
	want := sweepJSON(t, "boot", "-seeds", "1:4", "-accel", "tcg", "-o", t.TempDir())
	for _, name := range []string{"qemu-script", "virtme-ng"} {
		t.Run(name, func(t *testing.T) {
			if name == "virtme-ng" {
				if _, err := exec.LookPath("vng"); err != nil {
					t.Skip("NOT TESTED: boots by virtme-ng, which is not installed: apt-get install virtme-ng (Debian 13), or pip install virtme-ng")
				}
				t.Setenv("VNG", "--disable-kvm")
			}
			dir := t.TempDir()
			r := sweepJSON(t, "../examples/"+name+"/boot.yaml", "-seeds", "1:4", "-o", dir)
			if r.Accel != qemu.ByProgram || r.Count(qemu.Pass) != 4 || verdicts(r) != verdicts(want) {
				t.Errorf("%s:\n%swant\n%s", r.Accel, verdicts(r), verdicts(want))
			}
			twins, err := filepath.Glob(filepath.Join(r.Dir, "twin-*.yaml"))
			if err != nil || len(twins) == 0 {
				t.Fatalf("no layout that passes is saved: %v", err)
			}
			if code, out := unlucky(t, "replay", twins[0], "-trust", "-boots", "1"); code != 0 || !strings.Contains(out, "reproduced in 1 of 1 boots") {
				t.Errorf("exit status %d: %s", code, out)
			}
			text, err := os.ReadFile(seeds.ConsolePath(twins[0]))
			if err != nil {
				t.Fatal(err)
			}
			if name == "virtme-ng" && !bytes.Contains(text, []byte("virtme_hostname=")) {
				t.Errorf("virtme-ng has not booted this:\n%s", text)
			}
		})
	}
}

// Those that need a lab or a container are scenarios that are taken, and their scripts
// are shell.
func TestExampleScripts(t *testing.T) {
	scripts, err := filepath.Glob("../examples/*/boot.sh")
	if err != nil || len(scripts) != 4 {
		t.Fatalf("%q, %v: want 4 scripts", scripts, err)
	}
	for _, script := range scripts {
		if out, err := exec.Command("sh", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
		files, err := filepath.Glob(filepath.Join(filepath.Dir(script), "*.yaml"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%s: %q, %v: want one scenario", script, files, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.Replace(text, []byte("dir: linux "), []byte("dir: "+t.TempDir()+" "), 1)
		s, err := scenarios.Parse(text, files[0])
		if err != nil {
			t.Error(err)
			continue
		}
		if program, err := filepath.Abs(script); err != nil || s.Guest.Program()[0] != program {
			t.Errorf("%s runs %q, want %s", files[0], s.Guest.Program(), program)
		}
	}
}
