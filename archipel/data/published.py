"""Files of published data sets: names, addresses, checksums as published, and the folders in which people keep them."""

from __future__ import annotations

from archipel.data.audio import unpack_fsdd
from archipel.data.find import Published, RemoteFile
from archipel.data.graph import FILES as PLANETOID_FILES


def _idx(checksums: dict[str, str], bases: tuple[str, ...], folders: tuple[str, ...]) -> Published:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    files = tuple(
        RemoteFile(f"{n}.gz", tuple(f"{b}{n}.gz" for b in bases), f"md5:{checksums[n]}", (n, n.replace("-idx", ".idx")))
        for n in names
    )
    return Published(files, folders)


MNIST = _idx(
    {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    ("mnist", "MNIST", "MNIST/raw"),
)
FASHION_MNIST = _idx(
    {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
)
CIFAR10 = Published(
    (
        RemoteFile(
            "cifar-10-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "md5:c58f30108f718f92721af3b95e74349a",
            ("cifar-10-batches-py", "cifar-10-python.tar"),
        ),
    ),
    ("", "cifar10", "cifar-10"),
)
FSDD = Published(
    (
        RemoteFile(
            "recordings",
            ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",),
            None,
            unpack=unpack_fsdd,
        ),
    ),
    ("fsdd", "free-spoken-digit-dataset", "free-spoken-digit-dataset-master"),
)
SHAKESPEARE = Published(
    (
        RemoteFile(
            "input.txt",
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    ("tinyshakespeare", "tiny-shakespeare"),
)
PLANETOID_SHA256 = {
    "cora": (
        "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    ),
    "citeseer": (
        "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    ),
}


def planetoid(name: str) -> Published:
    """The eight files of a Planetoid graph, in the order of ``PLANETOID_FILES``."""
    base = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"
    files = tuple(
        RemoteFile(f"ind.{name}.{part}", (f"{base}ind.{name}.{part}",), f"sha256:{digest}")
        for part, digest in zip(PLANETOID_FILES, PLANETOID_SHA256[name], strict=True)
    )
    return Published(files, ("planetoid", "planetoid/data", f"{name.title()}/raw", f"Planetoid/{name.title()}/raw"))
