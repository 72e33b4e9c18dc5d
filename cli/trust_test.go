package cli

import (
	"testing"

	"unlucky/scenarios"
)

// A seed file names the version of a package, where a built-in scenario may leave it
// open: that is the same kernel. Another package, or another patch, is not.
func TestKernelIsKnown(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, test := range []struct {
		scenario, pkg string
		known         bool
	}{
		{"kcfi-seal", "", true},
		{"kcfi-seal", "linux-source-6.12=6.12.117-1~deb12u1", true},
		{"kcfi-seal", "linux-source-6.13", false},
		{"kcfi-hash", "linux-source-7.3=7.3.4-1~bpo13+1", true},
		{"kcfi-hash", "linux-source-7.4", true},
		{"kcfi-hash", "evil-source", false},
	} {
		s, err := scenarios.Load(test.scenario)
		if err != nil {
			t.Fatal(err)
		}
		if test.pkg != "" {
			s.Kernel.Package = test.pkg
		}
		if got := new(setup).kernelIsKnown(t.Context(), s.Kernel); got != test.known {
			t.Errorf("%s of %q: known is %v", test.scenario, test.pkg, got)
		}
		s.Kernel.Set = append(s.Kernel.Set, "EVIL=y")
		if new(setup).kernelIsKnown(t.Context(), s.Kernel) {
			t.Errorf("%s of %q, with a symbol more, is known", test.scenario, test.pkg)
		}
	}
}
