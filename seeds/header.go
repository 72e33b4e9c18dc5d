package seeds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"

	"unlucky/qemu"
	"unlucky/scenarios"
)

// Rules are those of a verdict, as a digest and in words.
func Rules(v scenarios.Verdict, limit time.Duration, infra *regexp.Regexp) (sum, words string) {
	parts := []string{v.Pass.String(), v.Crash.String(), fmt.Sprint(v.Warnings, v.Confirm), limit.String()}
	named := []string{"pass=" + v.Pass.String(), "crash=" + v.Crash.String(), fmt.Sprint("warnings=", v.Warnings),
		fmt.Sprint("confirm=", v.Confirm), "limit=" + limit.String()}
	if infra != nil {
		parts, named = append(parts, infra.String()), append(named, "infra="+infra.String())
	}
	return Digest(parts...), qemu.Quote(named)
}

func Digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%q\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
