package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/adrg/xdg"

	"unlucky/seeds"
)

// cluster is a Slurm of two nodes with one CPU each, all daemons of which run
// here, as this user, with every file and port their own. Nothing of a Slurm that
// this machine is part of is touched.
type cluster struct {
	t   *testing.T
	dir string
	env []string
}

// newCluster starts a cluster, which ends with the test.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	c.env = append(os.Environ(), "SLURM_CONF="+filepath.Join(c.dir, "slurm.conf"), "PATH="+os.Getenv("PATH")+":/usr/sbin")
	for _, program := range []string{"munged", "slurmctld", "slurmd"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/usr/sbin", program)); err != nil {
			t.Fatalf("NOT TESTED: Slurm, as there is no %s: make install-test installs it", program)
		}
	}
	host, err := os.Hostname()
	me, uerr := user.Current()
	key := make([]byte, 128) // of a cluster that only this test talks to
	err = errors.Join(err, uerr, os.Mkdir(filepath.Join(c.dir, "state"), 0o700), os.Mkdir(filepath.Join(c.dir, "spool"), 0o755),
		os.WriteFile(filepath.Join(c.dir, "munge.key"), key, 0o400))
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	ports := freePorts(t, 3)
	conf := fmt.Sprintf(`ClusterName=unlucky
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=%[2]d
SlurmUser=%[3]s
SlurmdUser=%[3]s
AuthInfo=socket=%[4]s/munge.socket
StateSaveLocation=%[4]s/state
SlurmdSpoolDir=%[4]s/spool/%%n
SlurmctldPidFile=%[4]s/slurmctld.pid
SlurmdPidFile=%[4]s/%%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
MpiDefault=none
# Of a loaded machine.
MessageTimeout=100
# Ended tasks are not forgotten, and one that ignores SIGTERM is not waited for long.
MinJobAge=86400
KillWait=10
NodeName=n1 NodeHostname=%[1]s NodeAddr=127.0.0.1 Port=%[5]d CPUs=1 RealMemory=65536
NodeName=n2 NodeHostname=%[1]s NodeAddr=127.0.0.1 Port=%[6]d CPUs=1 RealMemory=65536
PartitionName=all Nodes=n1,n2 Default=YES
`, host, ports[0], me.Username, c.dir, ports[1], ports[2])
	if err := os.WriteFile(filepath.Join(c.dir, "slurm.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	// Daemons end with the thread that starts them, and so even with a test that
	// runs out of time.
	runtime.LockOSThread()
	// Last begun, first ended by the cleanup: the controller needs munge.
	t.Cleanup(c.end)
	file := func(name string) string {
		return "--" + name + "=" + filepath.Join(c.dir, "munge."+strings.TrimSuffix(name, "-file"))
	}
	c.daemon("munged", "--foreground", "--force", "--num-threads=2", file("key-file"), file("socket"), file("pid-file"), file("seed-file"))
	c.until("munge", func() bool { _, err := os.Stat(filepath.Join(c.dir, "munge.socket")); return err == nil })
	c.daemon("slurmctld", "-D")
	c.daemon("slurmd", "-D", "-N", "n1")
	c.daemon("slurmd", "-D", "-N", "n2")
	c.until("two idle nodes", func() bool { out, _ := c.try("sinfo", "-h", "-o", "%D %t"); return out == "2 idle\n" })
	return c
}

// freePorts are TCP ports that nobody listens at.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// daemon starts a program that is ended with the test, and whose words are
// logged where that fails.
func (c *cluster) daemon(args ...string) {
	c.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	if cmd.Err != nil { // root's alone, for some
		cmd = exec.Command(filepath.Join("/usr/sbin", args[0]), args[1:]...)
	}
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.env, c.dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = time.Second // what it has started may hold its output
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if c.t.Failed() {
			c.t.Logf("%s:\n%s", strings.Join(args, " "), &log)
		}
	})
}

// end kills what is left of the cluster once its daemons have ended: its
// processes are those that know its slurm.conf, or work in its folder.
func (c *cluster) end() {
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil || len(environs) == 0 {
		c.t.Error("no /proc to look for processes in")
	}
	for _, path := range environs {
		var pid int
		fmt.Sscanf(path, "/proc/%d/", &pid)
		environ, _ := os.ReadFile(path)
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		if pid != os.Getpid() && (bytes.Contains(environ, []byte(c.dir+"/slurm.conf")) || strings.HasPrefix(cwd, c.dir+"/")) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			c.t.Errorf("left behind, and killed: %d %q", pid, line)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// try runs one of Slurm's commands, and command one that must do.
func (c *cluster) try(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = c.env, c.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) command(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// until waits for what takes seconds, or minutes on a machine with other work.
func (c *cluster) until(what string, done func() bool) {
	c.t.Helper()
	for begin := time.Now(); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > 15*time.Minute {
			queue, _ := c.try("squeue", "-o", "%i %t %M %r")
			c.t.Fatalf("no %s within 15 minutes\n%s", what, queue)
		}
	}
}

// task is one of an array.
type task struct{ id, state, exit, restarts string }

var taskLine = regexp.MustCompile(`(?m)^JobId=\d+ ArrayJobId=\d+ ArrayTaskId=(\S+) .* JobState=(\S+) .* Restarts=(\d+) .* ExitCode=(\S+) `)

// tasks are those of an array; several that wait can be one, "5-8".
func (c *cluster) tasks(array string) (tasks []task) {
	c.t.Helper()
	for _, m := range taskLine.FindAllStringSubmatch(c.command("scontrol", "show", "job", "-o", array), -1) {
		tasks = append(tasks, task{id: m[1], state: m[2], restarts: m[3], exit: m[4]})
	}
	if tasks == nil {
		c.t.Fatalf("Slurm knows no array %s", array)
	}
	return tasks
}

// The script for Slurm is one for any sh, and what it says to type is right;
// TestSlurm runs it.
func TestSlurmExample(t *testing.T) {
	const script = "../examples/slurm/sweep.sbatch"
	text, err1 := os.ReadFile(script)
	readme, err2 := os.ReadFile("../examples/slurm/README.md")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, shell := range []string{"sh", "bash"} {
		if out, err := exec.Command(shell, "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	array := regexp.MustCompile(`(?m)^#SBATCH --array=1-(\d+) `).FindStringSubmatch(string(text))
	command := regexp.MustCompile(`(?m)^exec unlucky (.*) "\$@"$`).FindStringSubmatch(string(text))
	if array == nil || command == nil {
		t.Fatalf("no array, or no command: %s", text)
	}
	// Without a cache of its own it makes one on the node, for this user alone.
	tmp := t.TempDir()
	cmd := exec.Command("sh", script, "-seeds", "1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "XDG_CACHE_HOME=", "SLURM_CPUS_PER_TASK=1")
	out, err := cmd.CombinedOutput()
	if exitStatus(err) != 2 {
		t.Errorf("the script ended with %v, not with unlucky's status of wrong usage\n%s", err, out)
	}
	if cache, err := os.Stat(filepath.Join(tmp, fmt.Sprintf("unlucky-%d", os.Getuid()))); err != nil || cache.Mode() != os.ModeDir|0o700 {
		t.Errorf("the cache is %v, %v", cache, err)
	}
	// What is typed: in the script's comment, and in the README.
	typed := regexp.MustCompile(`(?m)sbatch (?:--\S+ )*sweep\.sbatch (-.*)$`).FindAllStringSubmatch(string(text)+string(readme), -1)
	if len(typed) < 2 {
		t.Fatalf("only %q say what to type", typed)
	}
	last := os.Environ()
	for name, value := range map[string]string{"ID": array[1], "MIN": "1", "MAX": array[1], "COUNT": array[1], "STEP": "1"} {
		last = append(last, "SLURM_ARRAY_TASK_"+name+"="+value)
	}
	shard := fmt.Sprintf("shard %[1]s of %[1]s, by SLURM_ARRAY_TASK_ID\n", array[1])
	for _, m := range typed {
		// As far as it goes here: the kernel is missing, which a wrong flag or
		// environment would not come to.
		args := append(strings.Fields(strings.ReplaceAll(command[1], `"$SLURM_CPUS_PER_TASK"`, "1")), strings.Fields(m[1])...)
		cmd := exec.Command("unlucky", args...)
		cmd.Dir, cmd.Env = t.TempDir(), last
		out, err := cmd.CombinedOutput()
		if exitStatus(err) != 1 || !strings.Contains(string(out), shard) || !strings.Contains(string(out), "kernel.tar.zst: no such file") {
			t.Errorf("%q: %v\n%s\nwant %q, and an error that names the kernel", args, err, out, shard)
		}
	}
}

// The example for Slurm, an array of 8 shards of canary on two nodes. One task is
// killed in the middle and requeued, another is preempted; both go on. Together
// the shards find what one sweep finds, record by record.
func TestSlurm(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: Slurm, which boots 64 layouts of a real kernel")
	}
	kernel := filepath.Join(t.TempDir(), "kernel.tar.zst")
	if code, out := unlucky(t, "prepare", "canary", "-o", kernel); code != 0 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	what := []string{"-kernel", kernel}

	one := t.TempDir()
	report := sweepJSON(t, "canary", "-seeds", "1:32", "-o", one) // by the build
	header, want, damage, err := seeds.ReadJournal(filepath.Join(one, "canary/sweep.journal"))
	if err != nil || damage != "" || header == nil || len(want) != 33 || report.Finds() == 0 {
		t.Fatalf("one sweep: %d records, %d finds, %q, %v", len(want), report.Finds(), damage, err)
	}

	begin := time.Now()
	c := newCluster(t)
	t.Logf("the cluster took %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	script, err := filepath.Abs("../examples/slurm/sweep.sbatch")
	if err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "XDG_CACHE_HOME="+xdg.CacheHome) // for both nodes, instead of the disk of each
	array := strings.TrimSpace(c.command(append(append([]string{"sbatch", "--parsable", script}, what...),
		"-seeds", "1:32", "-accel", report.Accel, "-o", "out")...))
	t.Cleanup(func() { // before the daemons end, where the test has failed
		c.try("scancel", array)
		for wait := time.Now(); time.Since(wait) < time.Minute; time.Sleep(100 * time.Millisecond) {
			if left, err := c.try("squeue", "-h"); err != nil || left == "" {
				break
			}
		}
	})
	journal := func(shard int) string {
		return filepath.Join(c.dir, fmt.Sprintf("out/canary/sweep-%d-of-8.journal", shard))
	}
	lines := func(shard int) int {
		data, _ := os.ReadFile(journal(shard))
		return bytes.Count(data, []byte("\n"))
	}
	// Two lines of heading, the baseline, and the first of four layouts.
	middle := func(shard int) {
		t.Helper()
		c.until(fmt.Sprintf("layout of shard %d", shard), func() bool { return lines(shard) >= 4 })
	}
	stopped := func(shard int) {
		t.Helper()
		if n := lines(shard); n >= 3+4 {
			t.Errorf("shard %d was not stopped in the middle: its journal has %d lines", shard, n)
		}
	}
	middle(2)
	c.command("scancel", "--batch", "--signal=KILL", array+"_2")
	c.until("end of task 2", func() bool {
		return slices.ContainsFunc(c.tasks(array), func(k task) bool { return k.id == "2" && k.state == "FAILED" && k.exit == "0:9" })
	})
	stopped(2)
	c.command("scontrol", "requeue", array+"_2")
	middle(3)
	c.command("scontrol", "requeue", array+"_3") // as by preemption: SIGTERM first
	c.until("end of task 3", func() bool {
		return slices.ContainsFunc(c.tasks(array), func(k task) bool { return k.id == "3" && k.state == "PENDING" && k.restarts == "1" })
	})
	stopped(3)
	released := map[string]bool{}
	c.until("end of the array", func() bool {
		done := 0
		for _, k := range c.tasks(array) {
			switch {
			case k.state == "COMPLETED":
				done++
			case k.state == "PENDING" && k.restarts != "0" && !released[k.id]: // Slurm lets it wait for two minutes
				_, err := c.try("scontrol", "update", "JobId="+array+"_"+k.id, "StartTime=now")
				released[k.id] = err == nil
			case k.state != "PENDING" && k.state != "RUNNING" && k.state != "COMPLETING":
				log, _ := os.ReadFile(filepath.Join(c.dir, "sweep-"+k.id+".log"))
				t.Fatalf("task %s is %s, %s\n%s", k.id, k.state, k.exit, log)
			}
		}
		return done == 8
	})
	t.Logf("the array took %v", time.Since(begin).Round(100*time.Millisecond))

	var got []seeds.Record
	for shard := 1; shard <= 8; shard++ {
		h, records, damage, err := seeds.ReadJournal(journal(shard))
		if err != nil || damage != "" || h == nil || *h != *header || len(records) != 1+4 {
			t.Fatalf("shard %d: header %+v, %d records, %q, %v; want %+v", shard, h, len(records), damage, err, header)
		}
		for _, r := range records {
			if r.Layout != seeds.Baseline || shard == 1 {
				got = append(got, r)
			}
		}
		log, err := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("sweep-%d.log", shard)))
		if err != nil {
			t.Error(err)
		}
		for text, in := range map[string]bool{
			fmt.Sprintf("shard %d of 8, by SLURM_ARRAY_TASK_ID\n", shard): true,
			"of 4 layouts were tried before\n":                            shard == 2 || shard == 3,
			"interrupted; the same command continues here\n":              shard == 3,
		} {
			if bytes.Contains(log, []byte(text)) != in {
				t.Errorf("the log of shard %d: %q is in it: %v, want %v\n%s", shard, text, !in, in, log)
			}
		}
	}
	if got, want := recordTexts(got), recordTexts(want); got != want {
		t.Errorf("together:\n%swant\n%s", got, want)
	}
}
