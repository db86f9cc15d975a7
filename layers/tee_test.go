package layers

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"golang.org/x/sync/errgroup"
)

func TestTee(t *testing.T) {
	data := make([]byte, 3*teeBlocks*teeBlock+12345)
	rand.NewChaCha8([32]byte{}).Read(data)
	tt := newTee(3)
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(tt, iotest.HalfReader(bytes.NewReader(data)))
		tt.close(err)
		return err
	})
	got := make([][]byte, 3)
	for i, r := range tt.readers {
		g.Go(func() (err error) {
			defer func() { r.close(err) }()
			switch i {
			case 0:
				got[i], err = io.ReadAll(iotest.OneByteReader(io.LimitReader(r, 1000)))
				if err == nil {
					var rest bytes.Buffer
					_, err = io.Copy(&rest, r)
					got[i] = append(got[i], rest.Bytes()...)
				}
			default:
				got[i], err = io.ReadAll(r)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if !bytes.Equal(got[i], data) {
			t.Errorf("reader %d got %d other bytes", i, len(got[i]))
		}
	}
}

func TestTeeErrors(t *testing.T) {
	boom := errors.New("boom")
	t.Run("the writer's reaches all readers", func(t *testing.T) {
		tt := newTee(2)
		go func() {
			tt.Write([]byte("some"))
			tt.close(boom)
		}()
		for _, r := range tt.readers {
			if _, err := io.ReadAll(r); err != boom {
				t.Errorf("error %v", err)
			}
		}
	})
	t.Run("a reader's reaches the writer", func(t *testing.T) {
		tt := newTee(2)
		go io.Copy(io.Discard, tt.readers[0])
		tt.readers[1].close(boom)
		_, err := io.Copy(tt, io.LimitReader(zeroReader{}, 100*teeBlocks*teeBlock))
		if err != boom {
			t.Errorf("error %v", err)
		}
		tt.close(err)
	})
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }
