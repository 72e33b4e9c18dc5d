package qemu

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/shlex"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var argvTests = []struct {
	name    string
	machine Machine
}{
	{"small kernel under TCG", Machine{
		Binary: "qemu-system-x86_64", Type: "microvm,acpi=off", Accel: "tcg", CPU: "Nehalem", CPUs: 2, MemoryMiB: 256,
		Kernel: "vmlinux", Initrd: "initrd.cpio", Append: "console=ttyS0 reboot=t cfi=kcfi",
	}},
	{"big kernel under KVM", Machine{
		Binary: "qemu-system-x86_64", Type: "q35", Accel: "kvm", CPU: "host", CPUs: 8, MemoryMiB: 512,
		Kernel: "/var/cache/kernels/a b/bzImage", Append: "earlycon console=ttyS0",
	}},
	{"no initrd, no command line, defaults", Machine{Binary: "qemu-system-x86_64", Kernel: "vmlinux"}},
	{"further arguments", Machine{
		Binary: "qemu-system-x86_64", Type: "q35", Accel: "tcg", CPU: "max", CPUs: 1, MemoryMiB: 128, Kernel: "vmlinux",
		Append: "quiet", Args: []string{"-device", "pvpanic", "-cpu", "EPYC"},
	}},
	{"waiting for gdb", Machine{
		Binary: "qemu-system-x86_64", Type: "q35", Accel: "tcg", CPU: "max", CPUs: 1, MemoryMiB: 128, Kernel: "vmlinux",
		Append: `dyndbg="file init/* +p" it's`, GDB: true, Args: []string{"-d", "int"},
	}},
}

func TestArgv(t *testing.T) {
	const golden = "testdata/argv.golden"
	var got strings.Builder
	for _, test := range argvTests {
		line := Quote(test.machine.Argv())
		fmt.Fprintf(&got, "# %s\n%s\n", test.name, line)

		// What is pasted into a shell must be what would have run.
		if back, err := shlex.Split(line); err != nil || !cmp.Equal(back, test.machine.Argv()) {
			t.Errorf("%s: the quoted line reads back as %q, %v", test.name, back, err)
		}
	}
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) == 0 {
		t.Fatal("the golden file is empty")
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("argv differs from %s (-want +got), go test -update rewrites it:\n%s", golden, diff)
	}
}

// TestArgvIsFresh shows that two command lines share no memory.
func TestArgvIsFresh(t *testing.T) {
	m := Machine{Binary: "qemu", Args: []string{"-a"}}
	first := m.Argv()
	for i := range first {
		first[i] = "overwritten"
	}
	if second := m.Argv(); second[0] != "qemu" || second[1] != "-nodefaults" || second[len(second)-1] != "-a" {
		t.Errorf("a second command line was changed through the first: %q", second)
	}
}

func TestVersion(t *testing.T) {
	got, err := Version(t.Context(), "qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^\d+\.\d+(\.\d+)*$`).MatchString(got) {
		t.Errorf("version %q of the real QEMU", got)
	}

	fake := filepath.Join(t.TempDir(), "qemu")
	for _, test := range []struct{ output, want string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "7.2.22"},
		{"QEMU emulator version 10.0.50 (v10.0.0-2-gabc)", "10.0.50"},
		{"bochs", ""},
		{"", ""},
	} {
		writeScript(t, fake, "echo '"+test.output+"'")
		got, err := Version(t.Context(), fake)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("version of %q: %q, %v, want %q", test.output, got, err, test.want)
		}
	}
}

func TestNotInstalled(t *testing.T) {
	for _, test := range []struct{ binary, hint string }{
		{"/nowhere/qemu-system-x86_64", "apt-get install qemu-system-x86:"},
		{"/nowhere/qemu-system-aarch64", "apt-get install qemu-system-arm:"},
		{"/nowhere/qemu-system-riscv64", "apt-get install qemu-system-misc:"},
		{"qemu-system-nonesuch", "apt-get install qemu-system:"},
	} {
		_, err := Version(t.Context(), test.binary)
		if err == nil || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("Version of %s: %v, want the hint %q", test.binary, err, test.hint)
		}
		_, err = Machine{Binary: test.binary}.Boot(context.Background(), Expect{Pass: passRE})
		if err == nil || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("Boot of %s: %v, want the hint %q", test.binary, err, test.hint)
		}
	}
	plain := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (Machine{Binary: plain}).Boot(context.Background(), Expect{Pass: passRE}); err == nil || !strings.Contains(err.Error(), "cannot run") {
		t.Errorf("Boot of a file that is not executable: %v", err)
	}
}

func TestKVM(t *testing.T) {
	for _, test := range []struct{ path, want string }{
		{filepath.Join(t.TempDir(), "kvm"), "modprobe"},
		{"/dev/null", "KVM_GET_API_VERSION"},
	} {
		if err := kvmAt(test.path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("KVM at %s: %v, want %q in it", test.path, err, test.want)
		}
	}
	t.Logf("KVM here: %v", KVM())
	for binary, host := range map[string]string{"/opt/qemu-system-x86_64": "amd64", "qemu-system-i386": "amd64", "qemu-system-aarch64": "arm64"} {
		err := Machine{Binary: binary}.KVM()
		if other := err != nil && strings.Contains(err.Error(), "the guest is of"); other == (host == runtime.GOARCH) {
			t.Errorf("%s on %s: %v", binary, runtime.GOARCH, err)
		}
	}
}
