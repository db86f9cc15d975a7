package main

import (
	"archive/tar"
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ocurrent/obx/conformance"
)

// image DIR FILE writes an OCI layout with an image that is made of tar entries as others may write them, in their order. FILE has a line each:
//
//	layer                           the next layer begins
//	busybox                         busybox as a layer
//	d NAME MODE UID:GID TIME        a directory
//	f NAME MODE UID:GID TIME TEXT   a file; what is missing at the end is 755 or 644, 0:0, 0 and nothing
//	l NAME TARGET                   a symbolic link
//	h NAME TARGET                   a hard link
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: image DIR FILE")
	}
	var layers [][]byte
	var buf *bytes.Buffer
	var w *tar.Writer
	end := func() {
		if w != nil {
			ts.Check(w.Close())
			layers = append(layers, buf.Bytes())
			w = nil
		}
	}
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "busybox":
			end()
			layers = append(layers, nil)
		case f[0] == "layer":
			end()
			buf = &bytes.Buffer{}
			w = tar.NewWriter(buf)
		default:
			h, data := entry(ts, f)
			ts.Check(w.WriteHeader(h))
			_, err := w.Write([]byte(data))
			ts.Check(err)
		}
	}
	end()
	ts.Check(conformance.WriteImageLayout(ts.MkAbs(args[0]), layers...))
}

func entry(ts *testscript.TestScript, f []string) (h *tar.Header, data string) {
	h = &tar.Header{Typeflag: tar.TypeReg, Name: f[1], Mode: 0o644, ModTime: time.Unix(0, 0)}
	switch f[0] {
	case "l", "h":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f[2], 0o777
		if f[0] == "h" {
			h.Typeflag = tar.TypeLink
		}
		return h, ""
	case "d":
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	number := func(s string, base int) int64 {
		n, err := strconv.ParseInt(s, base, 64)
		ts.Check(err)
		return n
	}
	if len(f) > 2 {
		h.Mode = number(f[2], 8)
	}
	if len(f) > 3 {
		uid, gid, _ := strings.Cut(f[3], ":")
		h.Uid, h.Gid = int(number(uid, 10)), int(number(gid, 10))
	}
	if len(f) > 4 {
		h.ModTime = time.Unix(number(f[4], 10), 0)
	}
	if len(f) > 5 {
		data = strings.Join(f[5:], " ") + "\n"
		h.Size = int64(len(data))
	}
	return h, data
}
