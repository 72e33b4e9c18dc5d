package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	kube "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// read reads a file.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The manifests are of types that Kubernetes knows, and agree with each other,
// with the Containerfile and with unlucky.
func TestKubernetesExample(t *testing.T) {
	jobText, claimText, ok := strings.Cut(read(t, "job.yaml"), "\n---\n")
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
	env := os.Environ()
	for _, e := range c.Env {
		env = append(env, e.Name+"="+e.Value)
		paths = append(paths, "="+e.Value)
	}
	for _, path := range paths {
		if _, path, ok := strings.Cut(path, "=/"); ok && mounts["/"+strings.Split(path, "/")[0]] == "" {
			t.Errorf("/%s is on no volume", path)
		}
	}

	// The last pod, as Kubernetes sets it, is the last shard, and comes as far as it
	// goes here: its kernel is missing, which a wrong flag or environment would not
	// come to.
	unlucky := filepath.Join(t.TempDir(), "unlucky")
	build := exec.Command("go", "build", "-o", unlucky, ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	last := exec.Command(unlucky, c.Args...)
	last.Env = append(env, fmt.Sprint("JOB_COMPLETION_INDEX=", *s.Completions-1))
	out, err := last.CombinedOutput()
	shard := fmt.Sprintf("shard %[1]d of %[1]d, by JOB_COMPLETION_INDEX and UNLUCKY_SHARDS\n", *s.Completions)
	if status := new(exec.ExitError); !errors.As(err, &status) || status.ExitCode() != 1 || !strings.Contains(string(out), shard) || !strings.Contains(string(out), "/shared/kernel.tar.zst") {
		t.Errorf("%q: %v\n%s\nwant %q, and an error that names the kernel", c.Args, err, out, shard)
	}

	file := read(t, "Containerfile")
	if m := regexp.MustCompile(`(?m)^ENTRYPOINT \["unlucky"\]$`).FindString(file); m == "" {
		t.Error("the arguments are not unlucky's")
	}
	from := regexp.MustCompile(`(?m)^FROM golang:(\d+\.\d+) AS build$`).FindStringSubmatch(file)
	if from == nil || !strings.Contains(read(t, "../../go.mod"), "\ngo "+from[1]+".") {
		t.Errorf("the Containerfile builds with Go %q, go.mod wants another", from)
	}
	installed := regexp.MustCompile(`apt-get install \S+ \S+ ([^\\]*)`).FindStringSubmatch(file)
	if installed == nil || len(strings.Fields(installed[1])) == 0 {
		t.Fatal("the Containerfile installs nothing")
	}
	table := regexp.MustCompile(`[\s+]`).Split(read(t, "../../host/install.sh"), -1)
	for _, p := range strings.Fields(installed[1]) {
		p = regexp.MustCompile(`-\d+$`).ReplaceAllString(p, "-N")
		if !slices.Contains(table, p) {
			t.Errorf("the Containerfile installs %s, host/install.sh has it not", p)
		}
	}
}
