package kbuild

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"time"

	"github.com/adrg/xdg"
	"github.com/gofrs/flock"
)

// Cached is one kernel folder in the cache.
type Cached struct {
	Dir   string
	Bytes int64 // on disk
	Used  time.Time
}

// CachedKernels lists the kernels in the cache, the least recently used first.
func CachedKernels(cache string) ([]Cached, error) {
	entries, err := os.ReadDir(cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []Cached
	for _, e := range entries {
		dir := filepath.Join(cache, e.Name())
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		k := Build{Dir: dir}
		s, err := k.ReadState()
		if err != nil { // not finished, or given up
			if s.Bytes, err = DiskUsage(dir); err != nil {
				continue // it is going away
			}
		}
		out = append(out, Cached{dir, s.Bytes, info.ModTime()})
	}
	slices.SortFunc(out, func(a, b Cached) int { return cmp.Compare(a.Used.UnixNano(), b.Used.UnixNano()) })
	return out, nil
}

// Clean removes kernels, the least recently used first, until those that are
// left take at most keep bytes. It returns the ones removed. Kernels in use
// stay; with keep 0, one that is in use is an error.
func Clean(cache string, keep int64) (removed []Cached, err error) {
	kernels, err := CachedKernels(cache)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, k := range kernels {
		total += k.Bytes
	}
	for _, k := range kernels {
		if keep > 0 && total <= keep {
			break
		}
		lock := flock.New(filepath.Join(k.Dir, "lock"))
		free, lerr := lock.TryLock()
		if lerr != nil {
			return removed, lerr
		}
		if !free {
			if keep == 0 {
				err = errors.Join(err, fmt.Errorf("%s is in use: not removed", k.Dir))
			}
			continue
		}
		rerr := os.RemoveAll(k.Dir)
		lock.Unlock()
		if rerr != nil {
			return removed, rerr
		}
		removed = append(removed, k)
		total -= k.Bytes
	}
	return removed, err
}

// DiskUsage is the size of all files below dir, in bytes; links count as
// themselves.
func DiskUsage(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && d.Type().IsRegular() {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// CacheDir is where prepared kernels are kept. cron, systemd and containers set no
// HOME: then it is below the account's.
func CacheDir() string {
	home := xdg.CacheHome
	if account, err := user.Current(); err == nil && os.Getenv("HOME") == "" && os.Getenv("XDG_CACHE_HOME") == "" {
		home = filepath.Join(account.HomeDir, ".cache")
	}
	return filepath.Join(home, "unlucky")
}
