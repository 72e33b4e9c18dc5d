package kbuild

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"unlucky/host"
)

// Need is a program, or a header by its whole path, that preparing a kernel
// takes beside LLVM, and what package host calls that which brings it.
type Need struct{ Name, Package string }

// Needs are what a kernel's build is known to call.
var Needs = []Need{
	{"make", "make"},
	{"flex", "flex"},
	{"bison", "bison"},
	{"bc", "bc"},
	{"python3", "python3"}, // the initcalls' linker script of LTO
	{"patch", "patch"},
	{"tar", "tar"},
	{"xz", "xz"},
	{"/usr/include/gelf.h", "libelf"},
	{"/usr/include/openssl/opensslv.h", "libssl"},
}

// Find returns where the program or header is.
func (n Need) Find() (string, error) {
	if strings.HasPrefix(n.Name, "/") {
		_, err := os.Stat(n.Name)
		return n.Name, err
	}
	return exec.LookPath(n.Name)
}

// checkNeeds tells what is missing before minutes have gone into a build.
func checkNeeds() error {
	var names, packages []string
	for _, n := range Needs {
		if _, err := n.Find(); err != nil {
			names, packages = append(names, n.Name), append(packages, n.Package)
		}
	}
	if names == nil {
		return nil
	}
	return host.Hint(fmt.Errorf("building a kernel needs %s", strings.Join(names, ", ")), "%s", host.Install(packages...))
}
