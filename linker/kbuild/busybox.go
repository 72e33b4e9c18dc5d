package kbuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"unlucky/arch"
	"unlucky/host"
)

// The busybox of another architecture than the machine's is no program to install: it
// is taken out of Debian's package, without root.

const busyboxPackage = "busybox-static"

// Busybox is where the cache has the busybox of an architecture, or would have it.
func Busybox(cache string, a *arch.Arch) string {
	return filepath.Join(cache, "busybox-"+a.Name, "busybox")
}

// FetchBusybox returns the path of a busybox for guests of another architecture, and
// fetches it if it is not there.
func FetchBusybox(ctx context.Context, cache string, a *arch.Arch, progress Progress) (string, error) {
	path := Busybox(cache, a)
	if exists(path) {
		return path, nil
	}
	err := fetchBusybox(ctx, cache, a, path, progress)
	if err != nil && ctx.Err() == nil {
		err = host.Hint(fmt.Errorf("a busybox of %s, for the guest: %w", a.Name, err), "put one that is statically linked there as %s, or give guest.rootfs in place of init", path)
	}
	return path, err
}

func fetchBusybox(ctx context.Context, cache string, a *arch.Arch, path string, progress Progress) error {
	apt, err := (&privateApt{
		dir: filepath.Join(cache, "apt-"+a.Deb), foreign: a.Deb, progress: progress,
		asks: "asking Debian for the packages of " + a.Deb + " (some 10 MB the first time)",
	}).open(ctx)
	if err != nil {
		return err
	}
	defer apt.close()
	for age := listsAge; ; age = 0 {
		offers, asked, err := apt.offers(ctx, busyboxPackage, age)
		if err != nil {
			return err
		}
		best := newestOf(ctx, offers, func(o offer) string { return o.Version })
		deb, err := apt.download(ctx, best)
		if err != nil && !asked && ctx.Err() == nil {
			continue // the mirror may have dropped it since the lists were made
		} else if err != nil {
			return err
		}
		defer os.Remove(deb)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return takeOne(ctx, deb, best, path, 0o755, "bin/busybox", "usr/bin/busybox")
	}
}
