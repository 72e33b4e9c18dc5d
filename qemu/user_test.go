package qemu

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot says loudly that what root alone can show is left out.
func needRoot(t *testing.T, what string) (ok bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Logf("NOT TESTED: %s, as this is not root", what)
		return false
	}
	return true
}

// status boots a machine that halts and returns /proc/PID/status of its QEMU.
func status(t *testing.T, m Machine, mark string) (fields map[string]string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan Result, 1)
	go func() {
		r, err := m.Boot(ctx, Expect{Pass: passRE, Limit: far})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		ended <- r
	}()
	for {
		select {
		case r := <-ended:
			t.Fatalf("it ended: %s %s", r.Kind, r.Reason)
		case <-time.After(10 * time.Millisecond):
		}
		for _, pid := range marked(t, mark) {
			text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
			fields = map[string]string{}
			for line := range strings.Lines(string(text)) {
				name, value, _ := strings.Cut(line, ":")
				fields[name] = strings.Join(strings.Fields(value), " ")
			}
			if strings.HasPrefix(fields["Name"], "qemu") && fields["Seccomp"] == "2" {
				cancel()
				<-ended
				nothingLeft(t, mark)
				return fields
			}
		}
	}
}

// want fails the test where a process is another than it should be.
func want(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("QEMU's %s: %q, want %q", name, got[name], value)
		}
	}
}

const none = "0000000000000000"

// powerless is a process that can do nothing that its user can't.
var powerless = map[string]string{
	"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2",
}

// TestUnprivileged has root boot a kernel and an initrd from a folder that is
// root's alone, which they may be as well.
func TestUnprivileged(t *testing.T) {
	if !needRoot(t, "QEMU as another user") {
		return
	}
	kernel := buildGuest(t)
	mark := t.TempDir()
	initrd := filepath.Join(mark, "initrd")
	if err := os.WriteFile(initrd, bytes.Repeat([]byte("initrd"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o755, 0o600} {
		if err := errors.Join(os.Chmod(filepath.Dir(kernel), 0o700), os.Chmod(kernel, mode)); err != nil {
			t.Fatal(err)
		}
		m := guest(kernel, "tcg", `all good\n\t`, mark)
		m.Initrd = initrd
		if r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far}); err != nil || r.Kind != Pass {
			t.Errorf("mode %v: %s %s, %v", mode, r.Kind, r.Reason, err)
		}
		m.Append = `\h`
		s := status(t, m, mark)
		want(t, s, powerless)
		want(t, s, map[string]string{"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": ""})
		if who, err := m.User(); who != unprivileged || err != nil {
			t.Errorf("said to run as %q, %v", who, err)
		}
		// What is printed is what a person would type.
		if line := Quote(m.Argv()); !strings.Contains(line, kernel) || !strings.Contains(line, initrd) || strings.Contains(line, "/proc/") {
			t.Errorf("command line %s", line)
		}
		if info, err := os.Stat(kernel); err != nil || info.Mode().Perm() != mode {
			t.Errorf("the kernel has become %v, %v", info.Mode(), err)
		}
	}
}

// TestHostFiles gives QEMU a disk, of which it can open what everybody can.
func TestHostFiles(t *testing.T) {
	if !needRoot(t, "host files that are root's alone") {
		return
	}
	kernel := buildGuest(t)
	for _, test := range []struct {
		name         string
		folder, file fs.FileMode
		kind         Kind
	}{
		{"everybody's", 0o755, 0o644, Pass},
		{"root's file", 0o755, 0o600, Infra},
		{"file in root's folder", 0o700, 0o644, Infra},
	} {
		mark := enterable(t)
		disk := filepath.Join(mark, "disk")
		err := errors.Join(os.WriteFile(disk, make([]byte, 1<<16), 0o644), os.Chmod(disk, test.file), os.Chmod(mark, test.folder))
		if err != nil {
			t.Fatal(err)
		}
		m := guest(kernel, "tcg", `all good\n\t`, mark)
		m.Args = append(m.Args, "-drive", "if=none,format=raw,readonly=on,file="+disk)
		r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
		if err != nil || r.Kind != test.kind || (r.Kind == Infra) != strings.Contains(r.Reason, "Permission denied") {
			t.Errorf("%s: %s %q, %v, want %s", test.name, r.Kind, r.Reason, err, test.kind)
		}
	}
}

func TestUnreachableQEMU(t *testing.T) {
	if !needRoot(t, "a QEMU that only root can run") {
		return
	}
	fake := filepath.Join(t.TempDir(), "qemu") // in a folder of root's
	writeScript(t, fake, "echo all good")
	_, err := Machine{Binary: fake}.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
	if err == nil || !strings.Contains(err.Error(), "runs as nobody, who must be able to run it") {
		t.Errorf("error %v", err)
	}
}

// TestDeviceOfKVM is as whom QEMU may open a device of other owners and modes.
func TestDeviceOfKVM(t *testing.T) {
	if !needRoot(t, "the owners of KVM's device") {
		return
	}
	path := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		mode   fs.FileMode
		group  int
		groups []uint32
		root   bool
	}{
		{0o600, 0, nil, true},
		{0o660, 0, nil, true}, // root's group can do more than KVM
		{0o640, 106, nil, true},
		{0o660, 106, []uint32{106}, false},
		{0o666, 106, nil, false},
	} {
		if err := errors.Join(os.Chmod(path, test.mode), os.Chown(path, 0, test.group)); err != nil {
			t.Fatal(err)
		}
		c, err := withKVM(syscall.Credential{Uid: 65534}, path)
		if (c == nil) != test.root || (err != nil) != test.root || c != nil && (!slices.Equal(c.Groups, test.groups) || c.Uid != 65534) {
			t.Errorf("%v of group %d: %+v, %v", test.mode, test.group, c, err)
		}
	}
	for _, test := range []struct {
		arg string
		kvm bool
	}{
		{"kvm", true}, {"kvm,dirty-ring-size=4096", true}, {"q35,accel=kvm", true}, {"accel=kvm:tcg", true}, {"-enable-kvm", true},
		{"tcg", false}, {"kvm64", false}, {"microvm,acpi=off", false}, {"", false},
	} {
		if got := byKVM.MatchString(test.arg); got != test.kvm {
			t.Errorf("%q asks for KVM: %t", test.arg, got)
		}
	}
}

// again runs a test of this program once more in a process of its own, with
// the mark, and returns what it has printed.
func again(t *testing.T, program, mark string, attr *syscall.SysProcAttr) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), againVar+"="+mark, "GOMAXPROCS=2") // memory grows with CPUs
	cmd.Dir = mark
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	return string(out), err
}

const againVar = "UNLUCKY_TEST_AGAIN"

// TestUnderKVM boots under KVM, with its device as it is here and then, in a
// mount namespace, with one that belongs to a group.
func TestUnderKVM(t *testing.T) {
	const group = 4711
	if mark := os.Getenv(againVar); mark != "" {
		device := filepath.Join(mark, "kvm")
		err := errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mknod(device, unix.S_IFCHR|0o660, int(unix.Mkdev(10, 232))),
			os.Chown(device, 0, group), os.Chmod(device, 0o660),
			unix.Mount(device, kvmDevice, "", unix.MS_BIND, ""))
		if err == nil {
			err = KVM()
		}
		if err != nil {
			t.Logf("NOT TESTED: KVM's device of a group: %v", err)
			return
		}
		s := status(t, guest(filepath.Join(mark, "guest"), "kvm", `\h`, mark+"/.."), mark+"/..")
		want(t, s, powerless)
		want(t, s, map[string]string{"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": strconv.Itoa(group)})
		return
	}
	if !needRoot(t, "root's QEMU under KVM") {
		return
	}
	if err := KVM(); err != nil {
		t.Logf("NOT TESTED: root's QEMU under KVM: %v", err)
		return
	}
	mark := t.TempDir()
	kernel := buildGuest(t)
	m := guest(kernel, "kvm", `\h`, mark)
	uid := "65534"
	if _, err := m.User(); err != nil {
		uid = "0"
		if !strings.Contains(err.Error(), "chgrp kvm /dev/kvm") {
			t.Errorf("the reason says not what to do: %v", err)
		}
	}
	want(t, status(t, m, mark), map[string]string{"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "NoNewPrivs": "1"})

	if err := os.Rename(kernel, filepath.Join(mark, "guest")); err != nil {
		t.Fatal(err)
	}
	out, err := again(t, os.Args[0], mark, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS})
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	tell(t, out)
}

// tell passes on what a test run again has left out.
func tell(t *testing.T, out string) {
	for _, line := range regexp.MustCompile(`NOT TESTED.*`).FindAllString(out, -1) {
		t.Log(line)
	}
}

// TestNamespaceRoot is a root who may not become another user.
func TestNamespaceRoot(t *testing.T) {
	if mark := os.Getenv(againVar); mark != "" {
		m := guest(filepath.Join(mark, "guest"), "tcg", `all good\n\t`, mark+"/..")
		if who, err := m.User(); who != "root" || err == nil {
			t.Errorf("said to run as %q, %v", who, err)
		}
		if r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far}); err != nil || r.Kind != Pass {
			t.Errorf("%s %s, %v", r.Kind, r.Reason, err)
		}
		return
	}
	mark := t.TempDir()
	if err := os.Rename(buildGuest(t), filepath.Join(mark, "guest")); err != nil {
		t.Fatal(err)
	}
	ids := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
	out, err := again(t, os.Args[0], mark, &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids(os.Getuid()), GidMappings: ids(os.Getgid()),
	})
	switch {
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC):
		t.Logf("NOT TESTED: the root of a user namespace: %v", err)
	case err != nil || !strings.Contains(out, "--- PASS"):
		t.Errorf("%v\n%s", err, out)
	}
}

// TestNotRoot shows that nothing is different for anyone but root.
func TestNotRoot(t *testing.T) {
	if mark := os.Getenv(againVar); mark != "" || os.Geteuid() != 0 {
		if mark == "" {
			mark = filepath.Dir(buildGuest(t))
		}
		m := guest(filepath.Join(mark, "guest"), "tcg", `all good\n\t`, mark+"/..")
		cmd, err := m.Command(t.Context())
		if err != nil || !slices.Equal(cmd.Args, m.Argv()) || len(cmd.ExtraFiles) > 0 || cmd.SysProcAttr.Credential != nil {
			t.Errorf("%+v, %v", cmd, err)
		}
		if who, err := m.User(); who != "" || err != nil {
			t.Errorf("said to run as %q, %v", who, err)
		}
		if r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far}); err != nil || r.Kind != Pass {
			t.Errorf("%s %s, %v", r.Kind, r.Reason, err)
		}
		return
	}
	mark := enterable(t)
	program := filepath.Join(mark, "program")
	data, err := os.ReadFile(os.Args[0])
	if err := errors.Join(err, os.WriteFile(program, data, 0o755), os.Rename(buildGuest(t), filepath.Join(mark, "guest"))); err != nil {
		t.Fatal(err)
	}
	out, err := again(t, program, mark, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	if err != nil || !strings.Contains(out, "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
