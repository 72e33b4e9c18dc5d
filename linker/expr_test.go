package linker

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// Expressions as the kernel's scripts have them.
func TestExpressions(t *testing.T) {
	values := map[string]uint64{".": 0x1234, "_stext": 0x1000, "_etext": 0x2001, "untrain": 0x10, "safe": 0x20}
	value := func(name string) (uint64, error) {
		if v, ok := values[name]; ok {
			return v, nil
		}
		return 0, fmt.Errorf("%s is not known", name)
	}
	size := func(name string) (uint64, error) {
		if name != ".text" {
			return 0, fmt.Errorf("%s is not known", name)
		}
		return 0x301, nil
	}
	const fails = ^uint64(0)
	for _, test := range []struct {
		text string
		want uint64
	}{
		{".", 0x1234},
		{"ALIGN ( 16 )", 0x1240},
		{"ALIGN((1 << (12)))", 0x2000},
		{"ALIGN(_etext, 0x1000)", 0x3000},
		{"ALIGN(12)", fails},
		{"ABSOLUTE(.)", 0x1234},
		{". + 8", 0x123c},
		{". + ((((_etext - _stext) + 255) / 256) + 1) * 4", 0x1234 + 18*4},
		{"(((SIZEOF(.text) + 256 - 1) / 256) + 1) * 4", 5 * 4},
		{"SIZEOF(.data)", fails},
		{"untrain | (1 << 2) | (1 << 8)", 0x114},
		{`ASSERT((untrain | safe) - (untrain & safe) == (0x30), "won't alias.")`, 0x1234},
		{`ASSERT((safe & 0x3f) == 0, "not aligned")`, fails},
		{"! untrain", 0},
		{"- 1 + untrain", 0xf},
		{"~ 0xf & 0x1f", 0x10},
		{"_stext < _etext && 1 <= 1 || 0 > 1", 1},
		{"_etext % _stext", 1},
		{"_etext % 0", fails},
		{"safe & 0x3f == 0", fails}, // C has it another way
		{"1 | 2 + 3", fails},
		{"1 << 2 + 3", fails},
		{"1 == 2 < 0", fails},
		{"DEFINED(x)", fails},
		{"1 ? 2 : 3", fails},
		{"nowhere", fails},
		{"0x10000000000000000", fails},
		{`"text"`, fails},
		{"", fails},
	} {
		got := fails
		tree, err := parseExpression(test.text)
		if err == nil {
			got, err = evaluate(tree, value, size)
		}
		if err != nil {
			got = fails
		}
		if got != test.want {
			t.Errorf("%q is %#x, want %#x (%v)", test.text, got, test.want, err)
		}
	}
	tree, err := parseExpression(`ASSERT((safe & 0x3f) == 1, "not so")`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := evaluate(tree, value, size); !errors.Is(err, errAssert) {
		t.Errorf("error %v, want that of an assertion", err)
	}
	tree, err = parseExpression("ALIGN(16) + SIZEOF(.text) + safe")
	if got := namesIn(tree); err != nil || !slices.Equal(got, []string{".", ".text", "safe"}) {
		t.Errorf("names %q, %v", got, err)
	}
}
