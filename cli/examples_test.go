package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	kube "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// example reads a file of examples.
func example(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../examples", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parses runs a command line of an example as far as it goes here: its kernel is
// missing, which a wrong flag or environment would not come to.
func parses(t *testing.T, args []string) {
	t.Helper()
	err := run(t.Context(), args, nil, os.Stderr)
	if err == nil || errors.As(err, &usageError{}) || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "kernel.tar.zst") {
		t.Errorf("%q: error %v, want one that names the kernel", args, err)
	}
}

// The manifests are of types that Kubernetes knows, and agree with each other,
// with the Containerfile and with unlucky.
func TestKubernetesExample(t *testing.T) {
	jobText, claimText, ok := strings.Cut(example(t, "kubernetes/job.yaml"), "\n---\n")
	var job batch.Job
	var claim core.PersistentVolumeClaim
	for text, object := range map[string]any{jobText: &job, claimText: &claim} {
		data, err := yaml.YAMLToJSONStrict([]byte(text))
		if err != nil || !ok {
			t.Fatal(err)
		}
		// As the API server decodes: an unknown field, or one in other letters, is an error.
		if strict, err := kube.UnmarshalStrict(data, object); err != nil || strict != nil {
			t.Fatal(err, strict)
		}
	}
	if job.APIVersion != "batch/v1" || job.Kind != "Job" || claim.APIVersion != "v1" || claim.Kind != "PersistentVolumeClaim" {
		t.Errorf("they are a %s %s and a %s %s", job.APIVersion, job.Kind, claim.APIVersion, claim.Kind)
	}
	s := job.Spec
	if s.CompletionMode == nil || *s.CompletionMode != batch.IndexedCompletion || s.Completions == nil || s.Parallelism == nil || *s.Parallelism > *s.Completions {
		t.Fatalf("not an Indexed Job with all that it needs: %s", jobText)
	}
	pod := s.Template.Spec
	if pod.RestartPolicy != core.RestartPolicyNever { // what podFailurePolicy and backoffLimitPerIndex ask for
		t.Errorf("the restart policy is %s", pod.RestartPolicy)
	}
	if len(pod.Containers) != 1 || pod.SecurityContext == nil || pod.Containers[0].SecurityContext == nil {
		t.Fatalf("not one container, or not a word on its rights: %s", jobText)
	}
	c := pod.Containers[0]
	if p := pod.SecurityContext; p.RunAsNonRoot == nil || !*p.RunAsNonRoot || c.SecurityContext.AllowPrivilegeEscalation == nil || *c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Privileged != nil {
		t.Error("it asks for rights that unlucky does not need")
	}
	if kvm := c.Resources.Limits["devices.kubevirt.io/kvm"]; kvm.Value() != 1 {
		t.Errorf("it asks for %v KVM devices, want 1", kvm.Value())
	}

	// Every file that is named lies on a volume, and every volume is mounted.
	volumes, mounts := map[string]core.Volume{}, map[string]string{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range c.VolumeMounts {
		if _, ok := volumes[m.Name]; !ok {
			t.Errorf("%s is mounted from %q, which is no volume", m.MountPath, m.Name)
		}
		mounts[m.MountPath] = m.Name
	}
	if len(volumes) == 0 || len(mounts) != len(volumes) {
		t.Errorf("%d volumes and %d mounts", len(volumes), len(mounts))
	}
	if source := volumes[mounts["/shared"]].PersistentVolumeClaim; source == nil || source.ClaimName != claim.Name || !slices.Contains(claim.Spec.AccessModes, core.ReadWriteMany) {
		t.Errorf("/shared is %+v, the claim %q with %v", source, claim.Name, claim.Spec.AccessModes)
	}
	if source := volumes[mounts["/dev/shm"]].EmptyDir; source == nil || source.Medium != core.StorageMediumMemory {
		t.Errorf("/dev/shm is %+v", source)
	}
	paths := slices.Clone(c.Args)
	for _, e := range c.Env {
		t.Setenv(e.Name, e.Value)
		paths = append(paths, "="+e.Value)
	}
	for _, path := range paths {
		if _, path, ok := strings.Cut(path, "=/"); ok && mounts["/"+strings.Split(path, "/")[0]] == "" {
			t.Errorf("/%s is on no volume", path)
		}
	}

	// As Kubernetes sets it in the last pod.
	t.Setenv("JOB_COMPLETION_INDEX", strconv.Itoa(int(*s.Completions)-1))
	shard, _, err := findShard("", os.Getenv)
	if err != nil || shard.Index != shard.Count || shard.Count != uint32(*s.Completions) {
		t.Errorf("the last pod is shard %s, %v; want the last of %d", shard, err, *s.Completions)
	}
	parses(t, c.Args)

	file := example(t, "kubernetes/Containerfile")
	if m := regexp.MustCompile(`(?m)^ENTRYPOINT \["unlucky"\]$`).FindString(file); m == "" {
		t.Error("the arguments are not unlucky's")
	}
	version, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	from := regexp.MustCompile(`(?m)^FROM golang:(\d+\.\d+) AS build$`).FindStringSubmatch(file)
	if from == nil || !strings.Contains(string(version), "\ngo "+from[1]+".") {
		t.Errorf("the Containerfile builds with Go %q, go.mod wants another", from)
	}
	installed := regexp.MustCompile(`apt-get install \S+ \S+ ([^\\]*)`).FindStringSubmatch(file)
	if installed == nil || len(strings.Fields(installed[1])) == 0 {
		t.Fatal("the Containerfile installs nothing")
	}
	table, err := os.ReadFile("../host/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(installed[1]) {
		p = regexp.MustCompile(`-\d+$`).ReplaceAllString(p, "-N")
		if !slices.Contains(regexp.MustCompile(`[\s+]`).Split(string(table), -1), p) {
			t.Errorf("the Containerfile installs %s, host/install.sh has it not", p)
		}
	}
}

// The script for Slurm is one for any sh, and what it says to type is right;
// TestSlurm runs it.
func TestSlurmExample(t *testing.T) {
	text := example(t, "slurm/sweep.sbatch")
	for _, shell := range []string{"sh", "bash"} {
		if out, err := exec.Command(shell, "-n", "../examples/slurm/sweep.sbatch").CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	array := regexp.MustCompile(`(?m)^#SBATCH --array=1-(\d+) `).FindStringSubmatch(text)
	command := regexp.MustCompile(`(?m)^exec unlucky (.*) "\$@"$`).FindStringSubmatch(text)
	if array == nil || command == nil {
		t.Fatalf("no array, or no command: %s", text)
	}
	for name, value := range map[string]string{"ID": array[1], "MIN": "1", "MAX": array[1], "COUNT": array[1], "STEP": "1"} {
		t.Setenv("SLURM_ARRAY_TASK_"+name, value)
	}
	if shard, _, err := findShard("", os.Getenv); err != nil || shard.String() != array[1]+"/"+array[1] {
		t.Errorf("the last task is shard %s, %v", shard, err)
	}
	// Without a cache of its own it makes one on the node, for this user alone.
	tmp := t.TempDir()
	cmd := exec.Command("sh", "../examples/slurm/sweep.sbatch", "-seeds", "1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "XDG_CACHE_HOME=", "SLURM_CPUS_PER_TASK=1")
	out, err := cmd.CombinedOutput()
	if status := new(exec.ExitError); !errors.As(err, &status) || status.ExitCode() != exitUsage {
		t.Errorf("the script ended with %v, not with unlucky's status\n%s", err, out)
	}
	if cache, err := os.Stat(filepath.Join(tmp, fmt.Sprintf("unlucky-%d", os.Getuid()))); err != nil || cache.Mode() != os.ModeDir|0o700 {
		t.Errorf("the cache is %v, %v", cache, err)
	}
	// What is typed: in the script's comment, and in the README.
	typed := regexp.MustCompile(`(?m)sbatch (?:--\S+ )*sweep\.sbatch (-.*)$`).FindAllStringSubmatch(text+example(t, "slurm/README.md"), -1)
	if len(typed) < 2 {
		t.Fatalf("only %q say what to type", typed)
	}
	for _, m := range typed {
		parses(t, append(strings.Fields(strings.ReplaceAll(command[1], `"$SLURM_CPUS_PER_TASK"`, "1")), strings.Fields(m[1])...))
	}
}
