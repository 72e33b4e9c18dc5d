package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/qemu"
	"unlucky/seeds"
)

// lane is a user's folder with a kernel tree in small, a cache and a folder for
// temporary files, in which real processes of unlucky run.
type lane struct {
	t   *testing.T
	dir string
	env []string
}

func newLane(t *testing.T) *lane {
	t.Helper()
	l := &lane{t: t, dir: t.TempDir()}
	scenario, err := os.ReadFile("testdata/tiny.yaml")
	tmp, tree := filepath.Join(l.dir, "tmp"), filepath.Join(l.dir, "tiny")
	err = errors.Join(err, os.Mkdir(tmp, 0o755), os.CopyFS(tree, os.DirFS("../linker/testdata/tiny")),
		os.Chmod(filepath.Join(tree, "scripts/link-vmlinux.sh"), 0o755),
		os.WriteFile(filepath.Join(l.dir, "tiny.yaml"), scenario, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	l.env = append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(l.dir, "cache"), "TMPDIR="+tmp)
	return l
}

// start starts unlucky, which TestMain has put on the PATH.
func (l *lane) start(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	l.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("unlucky", args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = l.dir, l.env, &out, &errs
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	return cmd, &out, &errs
}

// run runs unlucky to its end and returns what it printed.
func (l *lane) run(args ...string) (out, errs string, err error) {
	l.t.Helper()
	cmd, o, e := l.start(args...)
	err = cmd.Wait()
	return o.String(), e.String(), err
}

// must is run of what must do.
func (l *lane) must(args ...string) string {
	l.t.Helper()
	out, errs, err := l.run(args...)
	if err != nil {
		l.t.Fatalf("unlucky %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return out
}

// running are the processes whose command line names a file of the lane.
func (l *lane) running() (lines []string) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(all) == 0 {
		l.t.Fatal("no /proc to look for processes in")
	}
	for _, path := range all {
		if line, _ := os.ReadFile(path); bytes.Contains(line, []byte(l.dir)) {
			lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}

// left are the files that a run makes for itself and must not leave, and locks.
func (l *lane) left() (paths []string) {
	for _, pattern := range []string{"tmp/*", "cache/unlucky/*/.unlucky-room-*", "cache/unlucky/*/source/.unlucky-room-*", "*/tiny/.*", "*/tiny/*/.*"} {
		found, _ := filepath.Glob(filepath.Join(l.dir, pattern))
		paths = append(paths, found...)
	}
	rooms, _ := filepath.Glob("/dev/shm/.unlucky-room-*/*") // of other tests too
	for _, link := range rooms {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, l.dir) {
			paths = append(paths, link)
			break
		}
	}
	for _, pattern := range []string{"cache/unlucky/*/lock", "*/tiny/sweep*.journal", "*.journal"} {
		locks, _ := filepath.Glob(filepath.Join(l.dir, pattern))
		for _, path := range locks {
			if holder := host.LockHolder(path); holder != "" {
				paths = append(paths, path+holder)
			}
		}
	}
	return paths
}

// moments are when a run is killed: at random in what all runs begin with, and
// at random after something new is in its folder, so that every run gets on.
var moments = []struct {
	name   string
	watch  []string // patterns of files; with none from the start
	within time.Duration
}{
	{"start", nil, 60 * time.Millisecond},
	{"prepare", nil, 400 * time.Millisecond},
	{"link", nil, time.Second},
	{"journal", []string{"*/tiny/sweep.journal", "*.journal"}, 40 * time.Millisecond},
	{"boot", []string{"*/tiny/sweep.journal", "*.journal"}, 300 * time.Millisecond},
	{"save", []string{"*/tiny/*/*", "*/tiny/twin*", "*.min.yaml"}, 8 * time.Millisecond},
}

// state is the number and the bytes of the files that a pattern finds.
func (l *lane) state(patterns []string) (state string) {
	for _, p := range patterns {
		found, _ := filepath.Glob(filepath.Join(l.dir, p))
		for _, path := range found {
			if info, err := os.Stat(path); err == nil {
				state += fmt.Sprint(path, info.Size(), info.ModTime().UnixNano(), " ")
			}
		}
	}
	return state
}

// killed runs unlucky again and again, and kills it at one moment after the
// other, until it ends by itself. It returns what that run printed, and adds up
// the kills by moment.
func (l *lane) killed(kills map[string]int, r *rand.Rand, args ...string) string {
	l.t.Helper()
	for n := r.IntN(len(moments)); ; n++ {
		m := moments[n%len(moments)]
		before := l.state(m.watch)
		cmd, out, errs := l.start(args...)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for m.watch != nil && len(ended) == 0 && l.state(m.watch) == before {
			time.Sleep(2 * time.Millisecond)
		}
		select {
		case err := <-ended:
			ended <- err
		case <-time.After(time.Duration(r.Int64N(int64(m.within)))):
			cmd.Process.Signal(syscall.SIGKILL)
		}
		err := <-ended
		if err == nil {
			return out.String()
		}
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
			l.t.Fatalf("after %v kills: %v\n%s", kills, err, errs)
		}
		kills[m.name]++
		for wait := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			lines := l.running()
			if lines == nil {
				break
			}
			if time.Since(wait) > 5*time.Second {
				l.t.Fatalf("killed, and still running are %q", lines)
			}
		}
	}
}

// sum is the number of kills.
func sum(kills map[string]int) (n int) {
	for _, k := range kills {
		n += k
	}
	return n
}

// TestKilled kills sweeps and minimizes at some 200 random moments. What they
// find is what uninterrupted ones find, and nothing of theirs is left.
func TestKilled(t *testing.T) {
	slow(t)
	t.Parallel()
	const sweeps, minimizes = 160, 45
	seed := uint64(time.Now().UnixNano())
	t.Logf("random moments of seed %d", seed)
	finish := func(t *testing.T, l *lane, kills map[string]int) {
		t.Helper()
		t.Logf("%d kills: %v", sum(kills), kills)
		if left := l.left(); left != nil {
			t.Errorf("left behind: %q", left)
		}
		if len(kills) < len(moments) {
			t.Errorf("killed at %d of %d moments", len(kills), len(moments))
		}
	}
	t.Run("sweep", func(t *testing.T) {
		t.Parallel()
		l, kills, r := newLane(t), map[string]int{}, rand.New(rand.NewPCG(seed, 1))
		args := []string{"sweep", "tiny.yaml", "-seeds", "0:11", "-strategy", "text", "-json"}
		var whole evidence.Report
		for round := 0; sum(kills) < sweeps; round++ {
			dir, workers := fmt.Sprint("out", round), strconv.Itoa(1+round%2)
			out := l.killed(kills, r, append(args, "-o", dir, "-j", workers)...)
			var report evidence.Report
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				t.Fatal(err)
			}
			if whole.Layouts == nil { // the first run of all may be killed while it builds
				if err := json.Unmarshal([]byte(l.must(append(args, "-o", "whole")...)), &whole); err != nil {
					t.Fatal(err)
				}
				checkStore(t, filepath.Join(l.dir, "whole/tiny"), whole)
			}
			if titles(report) != titles(whole) || verdicts(report) != verdicts(whole) || *report.Coverage != *whole.Coverage {
				t.Errorf("round %d:\n%s%+v\nwant\n%s%+v", round, verdicts(report), *report.Coverage, verdicts(whole), *whole.Coverage)
			}
			checkStore(t, filepath.Join(l.dir, dir, "tiny"), whole)
		}
		finish(t, l, kills)
	})
	t.Run("minimize", func(t *testing.T) {
		t.Parallel()
		l, kills, r := newLane(t), map[string]int{}, rand.New(rand.NewPCG(seed, 2))
		l.must("sweep", "tiny.yaml", "-seeds", "0:31", "-stop-after", "1", "-strategy", "text", "-o", "out")
		found, err := filepath.Glob(filepath.Join(l.dir, "out/tiny/invalid*/*.yaml"))
		if err != nil || len(found) == 0 {
			t.Fatal("no find to minimize")
		}
		args := []string{"minimize", found[0], "-json", "-ablate=false", "-j", "1"}
		answer := func(out, path string) string {
			if !strings.Contains(out, `"name":"victim"`) || !strings.Contains(out, path) {
				t.Fatalf("%s: the answer is %s", path, out)
			}
			f, err := seeds.Read(filepath.Join(l.dir, path))
			if err != nil || f.Minimized == nil || f.Title != "invalid opcode in canary_reboot" {
				t.Fatalf("%s holds %+v, %v", path, f, err)
			}
			return strings.Replace(out, path, "", 1)
		}
		whole := answer(l.must(append(args, "-o", "whole.min.yaml")...), "whole.min.yaml")
		for round := 0; sum(kills) < minimizes || len(kills) < len(moments) && round < 20; round++ {
			path := fmt.Sprintf("%d.min.yaml", round)
			if got := answer(l.killed(kills, r, append(args, "-o", path)...), path); got != whole {
				t.Errorf("round %d:\n%s\nwant\n%s", round, got, whole)
			}
		}
		finish(t, l, kills)
	})
}

// titles are what the layouts of a report showed, and how often.
func titles(r evidence.Report) string {
	var b strings.Builder
	for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
		fmt.Fprintf(&b, "%s %q %d of %d %s\n", l.Layout, l.Title, l.Crashes, l.Boots, l.Plan)
	}
	return b.String()
}

// checkStore checks that a sweep's folder has each layout of its report once: a
// line in the journal, and a seed file for each that did not pass.
func checkStore(t *testing.T, dir string, want evidence.Report) {
	t.Helper()
	journal := filepath.Join(dir, "sweep.journal")
	_, records, damage, err := seeds.ReadJournal(journal)
	text, rerr := os.ReadFile(journal)
	if lines := bytes.Count(text, []byte("\n")); err != nil || rerr != nil || damage != "" || len(records) != len(want.Layouts)+1 || lines != 2+len(records) {
		t.Errorf("%s has %d lines with %d records, of %d layouts, %q, %v", journal, lines, len(records), len(want.Layouts)+1, damage, errors.Join(err, rerr))
	}
	checkSaved(t, dir, want)
}

// checkSaved checks that each layout of a report that crashed has one seed file in
// a sweep's folder, and its console.
func checkSaved(t *testing.T, dir string, want evidence.Report) {
	t.Helper()
	saved := map[seeds.ID]string{}
	paths, _ := filepath.Glob(filepath.Join(dir, "*/*.yaml"))
	for _, path := range paths {
		f, err := seeds.Read(path)
		if err != nil || saved[f.Layout] != "" {
			t.Errorf("%s is beside %q: %v", path, saved[f.Layout], err)
		}
		if console, err := os.ReadFile(strings.TrimSuffix(path, ".yaml") + ".console"); err != nil || !bytes.Contains(console, []byte("tiny: hello")) {
			t.Errorf("the console beside %s is %q, %v", path, console, err)
		}
		saved[f.Layout] = path
	}
	for _, l := range append([]seeds.Record{want.Baseline}, want.Layouts...) {
		if l.Kind == qemu.Crash != (saved[l.Layout] != "") {
			t.Errorf("%s: %s, and saved as %q", l.Layout.Name(), l.Kind, saved[l.Layout])
		}
	}
}
