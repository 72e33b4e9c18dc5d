package kbuild

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
)

// The lines that are put directly before the definition of vmlinux_link().
// Every link of the image goes through that function and takes
// LDFLAGS_vmlinux, which no `ld -r` takes, in all versions from 5.10 to 7.1;
// user-mode Linux links with ${CC} and takes CFLAGS_vmlinux instead.
//
// The digits are spelt out because a range like 0-9 holds more than digits in
// some locales. Numbers beyond 32 bits are refused here because lld takes
// them, and -1 too, and cuts them to 32 bits without a word (measured, lld 22).
// The word CONFIG_ must not occur: fixdep would take it for a dependency.
const (
	blockMark = "# unlucky patch:"
	blockHead = blockMark + " UNLUCKY_SEED reaches every link of the image; unset, nothing changes\n"
	blockBody = `case "${UNLUCKY_SEED-}" in
"")
	;;
*[!0123456789]* | ???????????*)
	echo >&2 "${0}: UNLUCKY_SEED='${UNLUCKY_SEED}' is not a seed: a number from 0 to 4294967295 was expected"
	exit 1
	;;
*)
	if [ "${UNLUCKY_SEED}" -gt 4294967295 ]; then
		echo >&2 "${0}: UNLUCKY_SEED='${UNLUCKY_SEED}' is not a seed: a number from 0 to 4294967295 was expected"
		exit 1
	fi
	LDFLAGS_vmlinux="${LDFLAGS_vmlinux} --randomize-section-padding=${UNLUCKY_SEED}"
	CFLAGS_vmlinux="${CFLAGS_vmlinux} -Wl,--randomize-section-padding=${UNLUCKY_SEED}"
	;;
esac
` + blockMark + " end\n"
)

var (
	// The second line is there only where Patch has written it.
	patchBlock = regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(blockHead) +
		`(?:` + regexp.QuoteMeta(blockMark) + ` before: mode (0[0-7]{3}) mtime (-?[0-9]{1,19}) sha256 ([0-9a-f]{64})\n)?` +
		regexp.QuoteMeta(blockBody))

	shShebang = regexp.MustCompile(`^#![ \t]*(?:/usr)?/bin/(?:env[ \t]+)?(?:da|ba)?sh(?:[ \t]|$)`)
	shComment = regexp.MustCompile(`^[ \t]*#`)
	// Anything that defines vmlinux_link, in any shell's way.
	linkDefinition = regexp.MustCompile(`^[ \t]*(?:vmlinux_link[ \t]*\(|function[ \t]+vmlinux_link\b)`)
	// The one way that is understood, and what follows it.
	linkHead  = regexp.MustCompile(`^vmlinux_link[ \t]*\([ \t]*\)[ \t]*(\{?)[ \t]*(?:#.*)?$`)
	linkBrace = regexp.MustCompile(`^[ \t]*\{[ \t]*(?:#.*)?$`)

	flagsName = regexp.MustCompile(`\bLDFLAGS_vmlinux\b`)
	flagsUse  = regexp.MustCompile(`\$(?:LDFLAGS_vmlinux\b|\{LDFLAGS_vmlinux\b)`)
	flagsSet  = regexp.MustCompile(`^[ \t]*LDFLAGS_vmlinux=`)
	linkCall  = regexp.MustCompile(`\bvmlinux_link\b`)
	shTrailer = regexp.MustCompile(`[ \t]#.*$`)
)

// PatchScript returns a scripts/link-vmlinux.sh with lines that hand
// --randomize-section-padding=$UNLUCKY_SEED to each link of the image when
// UNLUCKY_SEED is set, and that do exactly what the script did when it is
// unset or empty. With a value that is not a number from 0 to 2^32-1 the
// script stops with an error before it links anything.
//
// The place is found by structure, not by version. A script that already has
// the lines is returned as it is. One whose structure is not understood is
// refused with an error that says what was looked for.
func PatchScript(script []byte) ([]byte, error) {
	return insertBlock(script, "")
}

// RevertScript returns the script without the lines of PatchScript or Patch:
// the original bytes. A script without them is returned as it is. Lines that
// were changed since are an error, so that nobody's work is thrown away.
func RevertScript(script []byte) ([]byte, error) {
	original, _, err := splitBlock(script)
	return original, err
}

// Patched reports whether the script has the lines of PatchScript or Patch,
// unchanged.
func Patched(script []byte) bool {
	_, at, err := splitBlock(script)
	return err == nil && at != nil
}

// insertBlock is PatchScript with the line that says what Revert restores.
func insertBlock(script []byte, before string) ([]byte, error) {
	original, found, err := splitBlock(script)
	if err != nil {
		return nil, err
	}
	at, err := findVmlinuxLink(original)
	if err != nil {
		return nil, err
	}
	if found != nil {
		if found[0] != at {
			return nil, fmt.Errorf("line %d: the lines of an earlier patch are no longer directly before vmlinux_link(): revert the patch first",
				lineAt(script, found[0]))
		}
		return script, nil
	}
	lines := blockHead + before + blockBody
	patched := make([]byte, 0, len(script)+len(lines))
	patched = append(patched, script[:at]...)
	patched = append(patched, lines...)
	patched = append(patched, script[at:]...)
	// Structure is looked for line by line: a text in quotes can look like it.
	if parses(script) && !parses(patched) {
		return nil, fmt.Errorf("line %d: looked for a place for lines of sh, but with them the script is none any more", lineAt(script, at))
	}
	return patched, nil
}

// parses tells whether sh can read a script, which is not run.
func parses(script []byte) bool {
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = bytes.NewReader(script)
	return cmd.Run() == nil
}

// splitBlock returns the script without the inserted lines, and the submatch
// indices of those lines in the script, nil where there are none.
func splitBlock(script []byte) (original []byte, found []int, err error) {
	original = script
	if found = patchBlock.FindSubmatchIndex(script); found != nil {
		original = make([]byte, 0, len(script))
		original = append(original, script[:found[0]]...)
		original = append(original, script[found[1]:]...)
	}
	if at := bytes.Index(original, []byte(blockMark)); at >= 0 {
		if found != nil && at >= found[0] {
			at += found[1] - found[0]
		}
		return nil, nil, fmt.Errorf("line %d: %q is not followed by the lines that this version writes: take out by hand what was patched, or put back the file that the kernel came with",
			lineAt(script, at), blockMark)
	}
	return original, found, nil
}

// findVmlinuxLink returns the offset of the line that begins the definition of
// vmlinux_link(), after it has checked that LDFLAGS_vmlinux extended there
// reaches the links in that function and nothing else.
func findVmlinuxLink(script []byte) (offset int, err error) {
	if i := bytes.IndexByte(script, 0); i >= 0 {
		return 0, fmt.Errorf("line %d: a NUL byte: looked for a shell script", lineAt(script, i))
	}
	if i := bytes.IndexByte(script, '\r'); i >= 0 {
		return 0, fmt.Errorf("line %d: a carriage return: looked for lines that end in LF alone, as sh wants them", lineAt(script, i))
	}
	lines := strings.Split(string(script), "\n")
	if !shShebang.MatchString(lines[0]) {
		return 0, errors.New("line 1: looked for #!/bin/sh")
	}

	def := -1
	for i, line := range lines {
		switch {
		case !linkDefinition.MatchString(line):
		case def >= 0:
			return 0, fmt.Errorf("line %d: looked for one definition of vmlinux_link(), found a second after that in line %d", i+1, def+1)
		default:
			def = i
		}
	}
	if def < 0 {
		return 0, errors.New("looked for the definition of vmlinux_link(), found none")
	}
	head := linkHead.FindStringSubmatch(lines[def])
	if head == nil {
		return 0, fmt.Errorf("line %d: looked for vmlinux_link() at the start of a line, with its opening brace at the end of that line or alone in the next", def+1)
	}
	open := def
	if head[1] == "" {
		if open++; open == len(lines) || !linkBrace.MatchString(lines[open]) {
			return 0, fmt.Errorf("line %d: looked for the opening brace of vmlinux_link() at the end of this line or alone in the next", def+1)
		}
	}
	if strings.HasSuffix(lines[def-1], `\`) { // line 0 is the shebang
		return 0, fmt.Errorf("line %d: looked for vmlinux_link() in a line of its own, but the line before goes on in it", def+1)
	}
	end := open + 1
	for end < len(lines) && !strings.HasPrefix(lines[end], "}") {
		end++
	}
	if end == len(lines) {
		return 0, fmt.Errorf("line %d: looked for the closing brace of vmlinux_link() at the start of a line, found none", def+1)
	}

	used, called := false, false
	for i, line := range lines {
		inside := i > open && i < end
		switch {
		case shComment.MatchString(line):
		case inside:
			if flagsName.MatchString(flagsUse.ReplaceAllString(line, "")) {
				return 0, fmt.Errorf("line %d: looked for a vmlinux_link() that takes LDFLAGS_vmlinux as it is, but it is set here", i+1)
			}
			used = used || flagsUse.MatchString(shTrailer.ReplaceAllString(line, ""))
		case flagsName.MatchString(line) && !(i < def && flagsSet.MatchString(line)):
			return 0, fmt.Errorf("line %d: looked for LDFLAGS_vmlinux set before vmlinux_link() (line %d) and used in it alone, so that no other link is padded", i+1, def+1)
		case i != def && linkCall.MatchString(line):
			called = true
		}
	}
	if !used {
		return 0, fmt.Errorf("line %d: looked for ${LDFLAGS_vmlinux} in vmlinux_link(), found none", def+1)
	}
	if !called {
		return 0, fmt.Errorf("line %d: looked for a call of vmlinux_link, found none", def+1)
	}
	for _, line := range lines[:def] {
		offset += len(line) + 1
	}
	return offset, nil
}

// lineOf returns the number of the line, from 1, that holds an offset.
func lineAt(text []byte, offset int) int {
	return 1 + bytes.Count(text[:offset], []byte("\n"))
}

// Patch patches DIR/scripts/link-vmlinux.sh in place as PatchScript does and
// reports whether that changed anything. Mode and owner stay; from 6.1 on make
// runs the script directly, so it must stay executable. What it was before is
// noted in the inserted lines, for Revert. The file is replaced by a rename,
// never written half. A script, or a folder of scripts, that is a symbolic link
// is refused: a rename would put a file in its place, and writing through it
// would change another tree than DIR.
func Patch(dir string) (changed bool, err error) {
	path, script, info, err := readScript(dir)
	if err != nil {
		return false, err
	}
	before := fmt.Sprintf("%s before: mode %04o mtime %d sha256 %x\n",
		blockMark, info.Mode().Perm(), info.ModTime().UnixNano(), sha256.Sum256(script))
	patched, err := insertBlock(script, before)
	if err != nil {
		return false, fmt.Errorf("%s is left as it is: %w", path, err)
	}
	if bytes.Equal(patched, script) {
		return false, nil
	}
	return true, replaceScript(path, patched, info, info.Mode().Perm(), time.Time{})
}

// Revert takes the lines of Patch out of DIR/scripts/link-vmlinux.sh and
// reports whether that changed anything. It gives back the original bytes,
// mode and modification time (in nanoseconds). Where the rest of the script was
// changed since, mode and time are left alone: an old time would hide that
// change from make.
//
// With the old time make does not link again by itself: an image that was
// linked with a seed stays until it is removed.
func Revert(dir string) (changed bool, err error) {
	path, script, info, err := readScript(dir)
	if err != nil {
		return false, err
	}
	original, found, err := splitBlock(script)
	if err != nil {
		return false, fmt.Errorf("%s is left as it is: %w", path, err)
	}
	if found == nil {
		return false, nil
	}
	mode, mtime := info.Mode().Perm(), time.Time{}
	if found[2] >= 0 && fmt.Sprintf("%x", sha256.Sum256(original)) == string(script[found[6]:found[7]]) {
		// The regular expression lets only digits through; a time that does
		// not fit was not written by Patch.
		perm, _ := strconv.ParseUint(string(script[found[2]:found[3]]), 8, 32)
		ns, err := strconv.ParseInt(string(script[found[4]:found[5]]), 10, 64)
		if err != nil {
			return false, fmt.Errorf("%s is left as it is: line %d: the time noted there: %w", path, lineAt(script, found[4]), err)
		}
		mode, mtime = os.FileMode(perm), time.Unix(0, ns)
	}
	return true, replaceScript(path, original, info, mode, mtime)
}

func readScript(dir string) (path string, script []byte, info os.FileInfo, err error) {
	path = filepath.Join(dir, "scripts", "link-vmlinux.sh")
	for _, link := range []string{filepath.Dir(path), path} {
		if target, err := os.Readlink(link); err == nil {
			return "", nil, nil, fmt.Errorf("%s is a symbolic link to %s: patch the tree that it leads to, or put a copy here", link, target)
		}
	}
	info, err = os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", nil, nil, fmt.Errorf("%s is not the top folder of a kernel source tree: %w", dir, err)
	case err != nil:
		return "", nil, nil, err
	case !info.Mode().IsRegular():
		return "", nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	script, err = os.ReadFile(path)
	return path, script, info, err
}

// replaceScript puts a file in the place of the one that info is of, with its
// owner and the given mode and, unless it is zero, modification time.
func replaceScript(path string, script []byte, info os.FileInfo, mode os.FileMode, mtime time.Time) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return fmt.Errorf("replacing the link script: %w", err)
	}
	defer f.Cleanup() // does nothing after the rename
	if _, err := f.Write(script); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	was, ok := info.Sys().(*syscall.Stat_t)
	now, err := f.Stat()
	if err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	if is, ok2 := now.Sys().(*syscall.Stat_t); ok && ok2 && (was.Uid != is.Uid || was.Gid != is.Gid) {
		if err := f.Chown(int(was.Uid), int(was.Gid)); err != nil {
			return fmt.Errorf("replacing %s: keeping its owner: %w", path, err)
		}
	}
	if err := f.Chmod(mode); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	if !mtime.IsZero() {
		// A zero access time leaves that as it is.
		if err := os.Chtimes(f.Name(), time.Time{}, mtime); err != nil {
			return fmt.Errorf("replacing %s: %w", path, err)
		}
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return nil
}
