package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// machine is a distribution of fake programs: its os-release, what its package
// manager knows, what is installed, and what the programs were called for.
type machine struct{ dir string }

// The fakes read the files offered and installed, a package a line, and write down
// what they install and in log what changes the machine. Before there is a file
// refreshed, apt knows only what is installed.
var fakes = map[string]string{
	"id":   `echo $(cat user)`,
	"sudo": `echo "sudo $*" >>log; [ "$1" != env ] || shift 2; exec "$@"`,

	"dpkg-query": `
pattern=$4
case $3 in
*Package*) sed -n 's/^\(clang-[^ ]*\)$/installed \1/p' installed ;;
*) grep -qx "$pattern" installed && echo -n installed || { echo "no packages found matching $pattern" >&2; exit 1; } ;;
esac`,
	"apt-get": `
[ "$1" = indextargets ] || echo "apt-get $*" >>log
case $1 in
indextargets) [ ! -e refreshed ] || echo list ;;
update) touch refreshed ;;
install) shift; for p; do case $p in -*) ;; *) grep -qx "$p" offered || exit 100; echo "$p" >>installed ;; esac; done ;;
esac`,
	"apt-cache": `
known() { [ ! -e refreshed ] || cat offered; cat installed; }
case $1 in
pkgnames) known | grep "^$2" | sort -u ;;
policy) shift; for p; do
	if known | grep -qx "$p"; then echo "$p:"; echo "  Installed: (none)"; echo "  Candidate: 1:22.1-1"; echo "  Version table:"
	elif [ "$p" = virtual ]; then echo "$p:"; echo "  Installed: (none)"; echo "  Candidate: (none)"
	else echo "N: Unable to locate package $p" >&2; fi
done ;;
esac`,

	"rpm": `[ "$1" = -q ] && grep -qx "$2" installed`,
	"dnf": `
case "$*" in
install*) echo "dnf $*" >>log ;;
esac
case "$*" in
*repoquery*) for p; do grep -x "$p" offered; done; exit 0 ;;
install*) for p; do case $p in -*|install) ;; *) grep -qx "$p" offered || exit 1; echo "$p" >>installed ;; esac; done ;;
esac`,

	"pacman": `
case $1 in
-S*i) ;;
-S*) echo "pacman $*" >>log ;;
esac
case $1 in
-Q) grep -qx "$2" installed ;;
-Si) grep -qx "$2" offered ;;
-Sy) touch refreshed ;;
-S) shift; for p; do case $p in -*) ;; *) grep -qx "$p" offered || exit 1; echo "$p" >>installed ;; esac; done ;;
esac`,
}

func newMachine(t *testing.T, release, user string, offered, installed []string) machine {
	t.Helper()
	m := machine{t.TempDir()}
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(m.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range fakes {
		write("bin/"+name, "#!/bin/sh\ncd "+m.dir+"\n"+strings.TrimPrefix(text, "\n")+"\n", 0o755)
	}
	write("os-release", release, 0o644)
	write("user", user+"\n", 0o644)
	write("offered", strings.Join(offered, "\n")+"\n", 0o644)
	write("installed", strings.Join(installed, "\n")+"\n", 0o644)
	write("log", "", 0o644)
	return m
}

func (m machine) refresh(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, "refreshed"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m machine) env() []string {
	return append(os.Environ(), "PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"), "UNLUCKY_OS_RELEASE="+filepath.Join(m.dir, "os-release"))
}

// run runs install.sh and returns what it said, and what the programs were called
// for to change the machine.
func (m machine) run(t *testing.T, args ...string) (said string, calls []string, ok bool) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"install.sh"}, args...)...)
	cmd.Env = m.env()
	out, err := cmd.CombinedOutput()
	log, rerr := os.ReadFile(filepath.Join(m.dir, "log"))
	if rerr != nil {
		t.Fatal(rerr)
	}
	for line := range strings.Lines(string(log)) {
		calls = append(calls, strings.TrimSpace(line))
	}
	return string(out), calls, err == nil
}

const (
	debian = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\nVERSION_CODENAME=trixie\n"
	mint   = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"
	fedora = "ID=fedora\nVERSION_ID=42\n"
	rocky  = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"
	arch   = "ID=arch\n"
	cachy  = "ID=cachyos\nID_LIKE=arch\n"
)

func llvms(versions ...string) (packages []string) {
	for _, v := range versions {
		packages = append(packages, "clang-"+v, "lld-"+v, "llvm-"+v)
	}
	return packages
}

func TestInstall(t *testing.T) {
	base := []string{"dpkg"} // on every Debian
	for _, test := range []struct {
		name, release, user string
		offered, installed  []string
		refreshed           bool // apt has lists
		needs               string
		calls               []string
		says                []string
		fails               bool
	}{
		{name: "Debian, all there", release: debian, user: "0", installed: append(llvms("22"), "make", "dpkg"), needs: "llvm make"},
		{name: "Debian, the newest", release: debian, user: "0", offered: append(llvms("9", "17", "19", "22"), "make", "clang-23", "lld-23", "clang-tools-24"), installed: base, needs: "llvm make",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends clang-22 lld-22 llvm-22 make"}},
		{name: "Debian, only older ones", release: debian, user: "0", offered: llvms("14", "9", "19"), installed: base, needs: "llvm",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends clang-19 lld-19 llvm-19"},
			says:  []string{"the newest LLVM here is 19", "all strategies but lld work"}},
		{name: "Debian, an older one is installed", release: debian, user: "0", offered: llvms("14", "22"), installed: append(llvms("14"), "dpkg"), needs: "llvm",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends clang-22 lld-22 llvm-22"}},
		{name: "Debian, a newer one is offered", release: debian, user: "0", offered: llvms("22", "23"), installed: append(llvms("22"), "dpkg"), needs: "llvm"},
		{name: "Debian, the newest is old and there", release: debian, user: "1000", offered: llvms("14", "19"), installed: append(llvms("14", "19"), "dpkg"), refreshed: true, needs: "llvm linux-source-6.12"},
		{name: "Debian, a newer one is known", release: debian, user: "0", offered: llvms("14", "22"), installed: append(llvms("14"), "dpkg"), refreshed: true, needs: "llvm",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends clang-22 lld-22 llvm-22"}},
		{name: "Debian, one in part", release: debian, user: "0", offered: llvms("22"), installed: []string{"dpkg", "clang-22"}, needs: "llvm",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends lld-22 llvm-22"}},
		{name: "Debian, no LLVM", release: debian, user: "0", offered: []string{"make"}, installed: base, needs: "llvm make", fails: true,
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends make"},
			says:  []string{"error: this distribution has no package for clang lld llvm"}},
		{name: "Debian, a source that only another suite has", release: debian, user: "0", offered: []string{"linux-source-6.12"}, installed: base, needs: "linux-source-6.12 linux-source-7.3",
			calls: []string{"apt-get update -q", "apt-get install -y -q --no-install-recommends linux-source-6.12"}},
		{name: "like Debian, with sudo", release: mint, user: "1000", offered: []string{"libelf-dev"}, installed: base, needs: "libelf",
			calls: []string{"sudo apt-get update -q", "apt-get update -q",
				"sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends libelf-dev", "apt-get install -y -q --no-install-recommends libelf-dev"}},
		{name: "Fedora", release: fedora, user: "0", offered: []string{"clang", "lld", "llvm", "busybox", "qemu-system-x86-core", "elfutils-libelf-devel"}, installed: []string{"busybox"},
			needs: "llvm busybox qemu-system-x86 libelf linux-source-6.12",
			calls: []string{"dnf install -y --setopt=install_weak_deps=False clang lld llvm qemu-system-x86-core elfutils-libelf-devel"}},
		{name: "like Fedora, without busybox", release: rocky, user: "0", offered: []string{"clang", "lld", "llvm"}, needs: "busybox llvm", fails: true,
			calls: []string{"dnf install -y --setopt=install_weak_deps=False clang lld llvm"}, says: []string{"error: this distribution has no package for busybox"}},
		{name: "Arch", release: arch, user: "0", offered: []string{"clang", "lld", "llvm", "python"}, needs: "llvm python3 munge", fails: true,
			calls: []string{"pacman -S --needed --noconfirm clang lld llvm python"}, says: []string{"no package for munge"}},
		{name: "like Arch", release: cachy, user: "0", offered: []string{"openssl"}, needs: "libssl", calls: []string{"pacman -S --needed --noconfirm openssl"}},
		{name: "an unknown need", release: debian, user: "0", needs: "make no-such-need", installed: base, fails: true, says: []string{"there is no need no-such-need"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, test.release, test.user, test.offered, test.installed)
			if test.refreshed {
				m.refresh(t)
			}
			said, calls, ok := m.run(t, strings.Fields(test.needs)...)
			if ok == test.fails {
				t.Errorf("ended well: %v\n%s", ok, said)
			}
			var got []string
			for _, c := range calls {
				if c != "pacman -Sy" { // whether there are lists depends on the host of the tests
					got = append(got, c)
				}
			}
			if strings.Join(got, "\n") != strings.Join(test.calls, "\n") {
				t.Errorf("called\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(test.calls, "\n"), said)
			}
			for _, want := range test.says {
				if !strings.Contains(said, want) {
					t.Errorf("said %q, want %q", said, want)
				}
			}
			if len(test.calls) == 0 && !test.fails && said != "" {
				t.Errorf("with nothing to do it said %q", said)
			}
		})
	}
}

// The line to type is the same choice, and changes nothing.
func TestLine(t *testing.T) {
	for _, test := range []struct {
		name, release      string
		offered, installed []string
		refreshed          bool
		needs, want        string
	}{
		{"Debian", debian, llvms("19", "22"), []string{"dpkg"}, true, "llvm", "apt-get install clang-22 lld-22 llvm-22"},
		{"what is there, too", debian, llvms("19"), []string{"dpkg", "make"}, true, "llvm make", "apt-get install clang-19 lld-19 llvm-19 make"},
		{"apt without lists", debian, nil, []string{}, false, "llvm busybox", "apt-get install clang lld llvm busybox-static"},
		{"not all", debian, []string{"make"}, []string{"dpkg"}, true, "make busybox", "apt-get install make; this distribution has no package for busybox-static"},
		{"one version", debian, llvms("22"), []string{"dpkg"}, true, "lld-22", "apt-get install lld-22"},
		{"Fedora", fedora, []string{"clang", "lld", "llvm", "make"}, nil, false, "llvm make lld-22", "dnf install clang lld llvm make lld"},
		{"Arch", arch, []string{"xz"}, nil, false, "xz slurm", "pacman -S xz; this distribution has no package for slurm"},
		{"another", "ID=void\n", nil, nil, false, "llvm make", "this distribution's packages (void) are not known here; install llvm make"},
		{"no os-release", "", nil, nil, false, "llvm", "this distribution's packages (unknown) are not known here; install llvm"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t, test.release, "1000", test.offered, test.installed)
			if test.refreshed {
				m.refresh(t)
			}
			for _, v := range m.env() {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value)
			}
			if got := Install(strings.Fields(test.needs)...); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			if log, err := os.ReadFile(filepath.Join(m.dir, "log")); err != nil || strings.Contains(string(log), "install") {
				t.Errorf("called %q, error %v", log, err)
			}
		})
	}
}

// What cannot be installed is said before anything is tried.
func TestNeitherRootNorSudo(t *testing.T) {
	m := newMachine(t, debian, "1000", []string{"make"}, []string{"dpkg"})
	if err := os.Remove(filepath.Join(m.dir, "bin", "sudo")); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("sudo"); err == nil {
		t.Skip("NOT TESTED: neither root nor sudo, as this machine has sudo")
	}
	said, calls, ok := m.run(t, "make")
	if ok || len(calls) != 0 || !strings.Contains(said, "neither root nor sudo") || !strings.Contains(said, "hint: apt-get install make") {
		t.Errorf("ended well: %v, called %q, said %q", ok, calls, said)
	}
}

// What the program and the Makefile ask for stands in the table.
func TestNeeds(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var needs []string
	for _, m := range regexp.MustCompile(`(?m)^(?:TEST_)?NEEDS := (.*)$`).FindAllStringSubmatch(string(makefile), -1) {
		needs = append(needs, strings.Fields(m[1])...)
	}
	if len(needs) < 15 {
		t.Fatalf("the Makefile needs only %v", needs)
	}
	for _, release := range []string{debian, fedora, arch} {
		m := newMachine(t, release, "1000", nil, nil)
		if said, _, ok := m.run(t, append([]string{"--print"}, needs...)...); !ok {
			t.Error(said)
		}
	}
}
