package oops

import "bytes"

// LineMax is the longest line, in bytes.
const LineMax = 4 << 10

// A LineWriter cuts a stream into lines and calls Each with every one that is not
// empty, without its end. Lines above LineMax are taken in pieces.
type LineWriter struct {
	Each    func(line []byte)
	partial []byte
}

// Write never fails.
func (l *LineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		piece, ended := b, false
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			piece, ended = b[:i], true
		}
		rest := LineMax - len(l.partial)
		if len(piece) > rest {
			piece, ended = piece[:rest], false
		}
		l.partial = append(l.partial, piece...)
		b = b[len(piece):]
		if ended {
			b = b[1:]
		}
		if ended || len(l.partial) == LineMax {
			l.Flush()
		}
	}
	return n, nil
}

// Flush passes on a last line that lacks its end.
func (l *LineWriter) Flush() {
	if len(l.partial) > 0 {
		l.Each(l.partial)
		l.partial = l.partial[:0]
	}
}

// escape returns the length of the terminal's escape sequence that s begins
// with: CSI, OSC, or a short one. A regexp takes a minute for the 100 MB of
// escapes that a guest can print.
func escape(s []byte) int {
	n := len("\x1b")
	span := func(low, high byte) {
		for n < len(s) && low <= s[n] && s[n] <= high {
			n++
		}
	}
	one := func(low, high byte) {
		if n < len(s) && low <= s[n] && s[n] <= high {
			n++
		}
	}
	switch {
	case n < len(s) && s[n] == '[':
		n++
		span('0', '?')
		span(' ', '/')
		one('@', '~')
	case n < len(s) && s[n] == ']':
		for n++; n < len(s) && s[n] != '\a' && s[n] != 0x1b; {
			n++
		}
		if bytes.HasPrefix(s[n:], []byte("\x1b\\")) {
			n += len("\x1b\\")
		} else {
			one('\a', '\a')
		}
	default:
		span(' ', '/')
		one('0', '~')
	}
	return n
}

// Clean takes escape sequences out of a line, in place, and turns all else
// that is not printable ASCII into spaces.
func Clean(line []byte) []byte {
	kept := line[:0]
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case b == 0x1b:
			i += escape(line[i:]) - 1
		case b < ' ' || b > '~':
			kept = append(kept, ' ')
		default:
			kept = append(kept, b)
		}
	}
	return kept
}

// Text returns a line of the console without what is not of its text:
// control bytes, escape sequences, timestamp, caller, surrounding spaces. A
// program's words in front of a timestamp are of its text.
func Text(line []byte) []byte {
	line = bytes.TrimSpace(Clean(bytes.Clone(line)))
	if len(line) == 0 || line[0] != '[' && line[0] != '<' {
		return line
	}
	text, _, _ := splitPrefix(line)
	return text
}

// splitPrefix cuts a clean line behind the last timestamp in it: the kernel
// does not wait for a program to end its line. It returns the text, the caller
// ("T12", "C0") if the kernel prints it, and whether there was a timestamp.
func splitPrefix(line []byte) (text []byte, caller string, stamped bool) {
	text = line
	for i := 0; ; {
		n := bytes.IndexByte(line[i:], ']')
		if n < 0 {
			break
		}
		if i += n + 1; endsInStamp(line[:i]) {
			text, stamped = line[i:], true
		}
	}
	text = bytes.TrimSpace(text)
	if level := len("<6>"); len(text) >= level && text[0] == '<' && text[1] >= '0' && text[1] <= '7' && text[2] == '>' {
		text = bytes.TrimSpace(text[level:])
	}
	if len(text) > 0 && text[0] == '[' {
		if id, rest, ok := bytes.Cut(text[1:], []byte("]")); ok {
			if id = bytes.TrimLeft(id, " "); len(id) > 1 && (id[0] == 'T' || id[0] == 'C') && digits(id[1:]) == len(id)-1 {
				return bytes.TrimSpace(rest), string(id), stamped
			}
		}
	}
	return text, "", stamped
}

// endsInStamp reports whether line ends in a timestamp, "[    1.234567]"
// (print_time in kernel/printk/printk.c: "[%5lu.%06lu]").
func endsInStamp(line []byte) bool {
	const micros = len(".123456]")
	point := len(line) - micros
	if point < len("[1") || line[point] != '.' || digits(line[point+1:]) != micros-2 {
		return false
	}
	seconds := point
	for seconds > 0 && line[seconds-1] >= '0' && line[seconds-1] <= '9' {
		seconds--
	}
	open := len(bytes.TrimRight(line[:seconds], " ")) - 1
	return seconds < point && open >= 0 && line[open] == '['
}

// digits returns with how many decimal digits s begins.
func digits(s []byte) int {
	return len(s) - len(bytes.TrimLeft(s, "0123456789"))
}
