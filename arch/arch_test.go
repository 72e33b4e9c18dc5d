package arch

import (
	"runtime"
	"slices"
	"testing"
)

// Each architecture is found by its names, and only by them, and what is booted of it
// is said in full.
func TestArch(t *testing.T) {
	if len(All) == 0 {
		t.Fatal("no architecture is known")
	}
	for _, a := range All {
		if got, err := Of(a.Name); got != a || err != nil {
			t.Errorf("Of(%q) is %v, %v", a.Name, got, err)
		}
		if OfELF(a.ELF) != a {
			t.Errorf("%s is not found by ELF machine %v", a.Name, a.ELF)
		}
		if got, err := Of(a.Also); a.Also != "" && (got != a || err != nil) {
			t.Errorf("Of(%q) is %v, %v", a.Also, got, err)
		}
		if (a.Cross() == "") != (a.GOARCH == runtime.GOARCH) {
			t.Errorf("on %s tools of %s begin with %q", runtime.GOARCH, a.Name, a.Cross())
		}
		if a.Kernel == "" || a.GOARCH == "" || a.Deb == "" || a.Machine == "" || a.CPU == "" || len(a.Images) == 0 || !slices.Contains(a.Images, a.Target) {
			t.Errorf("the description lacks something: %+v", a)
		}
	}
	for _, name := range []string{"", "x86", "X86_64", "i386"} {
		if a, err := Of(name); err == nil {
			t.Errorf("Of(%q) is %v", name, a)
		}
	}
}

func TestBootFile(t *testing.T) {
	for image, want := range map[string]string{"vmlinux": "", "bzImage": "arch/x86/boot/bzImage"} {
		if got := X86_64.BootFile(image); got != want {
			t.Errorf("the file of %s is %q, want %q", image, got, want)
		}
	}
	if got := ARM64.BootFile("Image"); got != "arch/arm64/boot/Image" {
		t.Errorf("the file of Image is %q", got)
	}
	if got := BootFiles(); !slices.Equal(got, []string{"bzImage", "Image"}) {
		t.Errorf("boot files %q", got)
	}
	if got := Emulator(X86_64.Name); got != "qemu-system-x86_64" {
		t.Errorf("emulator %q", got)
	}
}
