"""Images and transforms: what operations do with given settings, and how the draws are distributed."""
import math
import zlib

import numpy as np
import paddle

from ppssl.data import color, crops, mixup, randaugment
from ppssl.data.device import normalize
from ppssl.data.erasing import draw_erasing_box, erase, erasing_noise
from ppssl.data.images import decode
from ppssl.data.resize import centre_crop, resize_shorter, resized_crop, shorter_side_shape
from ppssl.data.transforms import IMAGENET_MEAN, INCEPTION_MEAN, EvalTransform, FinetuneTransform, ViewDraws, apply_view
from tests.golden.adapters.common import tensor
from tests.golden.adapters.statistics import fraction, histogram, mean, moments, not_below
from tests.golden.case import Case
from tests.golden.runner import Check, same


def only(spec: dict, *names: str) -> list:
    """The values of these fields of a record; any other field is a setting that is not understood."""
    if unknown := set(spec) - set(names):
        raise ValueError(f"settings this adapter does not understand: {sorted(unknown)} in {spec}")
    return [spec.get(name) for name in names]


def normalized(image: np.ndarray, spec: dict) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W] by the case's mean and std."""
    mean_, std, _ = only(spec, "mean", "std", "formula")
    return normalize(tensor(image[None]), mean_, std).numpy()[0]


def decoding(case: Case) -> dict:
    return {f["array"]: decode(case.file(f["file"])) for f in case.spec["files"]}


def resized_crops(case: Case) -> dict:
    out = {}
    for crop in case.spec["crops"]:
        index, image, *box, size, interpolation, flip = only(
            crop, "index", "image", "i_top", "j_left", "h", "w", "size", "interpolation", "hflip")
        out[f"out/{index}"] = resized_crop(case.inputs[image], tuple(box), size, interpolation, flip)
    return out


def eval_resize_crop(case: Case) -> dict:
    out = {}
    stride = case.spec["norm_stride"]
    for entry in case.spec["images"]:
        index, _, (width, height), size, resize_to, (wide, high), mean_, std = only(
            entry, "index", "photo", "in_wh", "input_size", "resize_to", "resized_wh", "norm_mean", "norm_std")
        transform, image = EvalTransform(size, interpolation=case.spec["interpolation"]), case.inputs[str(index)]
        view = transform(image)
        whole = normalized(view, case.spec["normalize"])
        out |= {f"out/{index}_uint8": view, f"out/{index}_norm_slice": whole[:, ::stride, ::stride],
                f"json/{index}_in_wh": same(image.shape[:2], (height, width)),
                f"json/{index}_resize_to": same(transform.resize_to, resize_to),
                f"json/{index}_resized_wh": same(shorter_side_shape((height, width), resize_to), (high, wide)),
                f"json/{index}_norm_mean": near(whole.mean(dtype=np.float64), mean_, 2e-6),
                f"json/{index}_norm_std": near(whole.std(ddof=1, dtype=np.float64), std, 2e-6)}
    return out


def near(ours: float, theirs: float, tolerance: float) -> Check:
    """A number of case.json within an absolute tolerance."""
    difference = abs(float(ours) - theirs)
    return Check(difference <= tolerance, difference, difference / abs(theirs) if theirs else 0.0, f"abs {tolerance}")


def eval_jpeg(case: Case) -> dict:
    spec = case.spec
    image = decode(case.file(spec["file"]))
    out = {"json/in_wh": same([image.shape[1], image.shape[0]], spec["in_wh"]),
           "json/decoded_crc32": same(zlib.crc32(image.tobytes()), spec["decoded_crc32"])}
    for entry in spec["outputs"]:
        name, interpolation, stride, is_normalized = only(entry, "array", "interpolation", "stride", "normalized")
        view = centre_crop(resize_shorter(image, spec["resize_to"], interpolation), spec["crop"])
        if is_normalized:
            out[name] = normalized(view, spec["normalize"])[:, ::stride, ::stride]
        else:
            out[name] = view[::stride, ::stride]
    return out


def byol_views(case: Case) -> dict:
    spec, out = case.spec, {}
    stride = spec["norm_stride"]
    for entry in spec["outputs"]:
        view = apply_view(case.inputs["image"], view_draws(entry, spec["jitter_ops"]), spec["output_size"],
                          spec["interpolation"], spec["blur_kernel"], spec["solarize_threshold"])
        out[f"out/{entry['index']}_uint8"] = view
        out[f"out/{entry['index']}_norm_slice"] = normalized(view, spec["normalize"])[:, ::stride, ::stride]
    return out


def view_draws(entry: dict, jitter_ops: list[str]) -> ViewDraws:
    _, _, draws, flipped, jittered, gray, blurred, solarized = only(
        entry, "index", "view", "draws", "flipped", "jittered", "grayscale", "blurred", "solarized")
    box, jitter, sigma = only(draws, "crop_ijhw", "jitter", "sigma")
    names = [jitter_ops[i] for i in jitter["order"]] if jittered else []
    chain = tuple((name, jitter[name]) for name in names)
    return ViewDraws(tuple(box), flipped, chain, gray, sigma if blurred else None, solarized)


def color_ops(case: Case) -> dict:
    return {f"out/{entry['index']}": color_op(case.inputs[entry["image"]], entry) for entry in case.spec["ops"]}


def color_op(image: np.ndarray, entry: dict) -> np.ndarray:
    _, _, op, factor, threshold, chain = only(entry, "index", "image", "op", "factor", "threshold", "chain")
    if op == "grayscale3":
        return color.grayscale(image)
    if op == "solarize":
        return color.solarize(image, threshold)
    return color.color_jitter(image, [tuple(step) for step in chain] if op == "color_jitter" else [(op, factor)])


def gaussian_blur(case: Case) -> dict:
    out = {}
    for entry in case.spec["blurs"]:
        index, kernel, sigma = only(entry, "index", "kernel", "sigma")
        out[f"out/{index}"] = color.gaussian_blur(case.inputs["image"], sigma, kernel)
    return out


def product_op(official: str) -> tuple[str, bool]:
    """(the product's operation, whether in its increasing variant) of timm's name."""
    name = official.removesuffix("Increasing")
    if name not in randaugment.OP_WEIGHTS:
        raise ValueError(f"no operation of RandAugment: {official}")
    return name, official != name


def randaugment_ops(case: Case) -> dict:
    out = {}
    for entry in case.spec["outputs"]:
        index, op, level, sign, args, interpolation, fill = only(
            entry, "index", "op", "level", "sign", "args", "interpolation", "fill")
        name, increasing = product_op(op)
        value = randaugment.argument(name, level, increasing, sign)
        out[f"json/{index}_argument"] = near(value, args[0], 1e-12) if args else same(value, None)
        fill = tuple(fill) if fill else None              # only operations that uncover pixels have one
        out[f"out/{index}"] = randaugment.apply_op(case.inputs["image"], name, value, fill, interpolation)
    return out | op_levels(case) | policy(case)


def op_levels(case: Case) -> dict:
    """The arguments at stated levels; operations that only other policies of timm have are left out."""
    only_elsewhere = {"PosterizeOriginal", "TranslateX", "TranslateY"}
    out = {"json/op_list": same([product_op(op)[0] for op in case.spec["op_list_inc1"]], list(randaugment.OP_WEIGHTS))}
    for op, levels in case.spec["level_to_arg"].items():
        if op not in only_elsewhere:
            name, increasing = product_op(op)
            for level, (theirs,) in (levels or {}).items():
                out[f"json/{op}_at_{level}"] = near(randaugment.argument(name, float(level), increasing), theirs, 1e-12)
    return out


def policy(case: Case) -> dict:
    """The settings behind 'rand-m9-mstd0.5-inc1', and from draws how often operations run, at what magnitude and sign.

    Magnitudes are compared after cutting them at their mean m (E[min(N(m, s), m)] = m - s / sqrt(2 pi)), out of reach
    of the clipping at 10.
    """
    spec, n = case.spec["policy"], 20_000
    m = spec["magnitude"]
    ours = randaugment.parse_policy(f"rand-m{m}-mstd{spec['magnitude_std']}-inc1")
    rng = np.random.default_rng(0)
    drawn = [op for _ in range(n) for op in randaugment.draw_ops(ours, rng)]
    turns = np.array([value for name, value in drawn if name == "Rotate"]) / 3
    share = 1 / len(randaugment.OP_WEIGHTS)
    fills = [list(FinetuneTransform(8, mean=m).fill) for m in (IMAGENET_MEAN, INCEPTION_MEAN)]
    return {"json/fill": same(spec["fill"] in fills, True), "json/num_layers": same(ours.layers, spec["num_layers"]),
            "json/op_prob": fraction(len(drawn) / (n * ours.layers), spec["op_prob"], n * ours.layers),
            "json/choice": fraction(len(turns) / len(drawn), share, len(drawn)),
            "json/negate": fraction((turns < 0).mean(), 0.5, len(turns)),
            "json/magnitude": mean(np.minimum(abs(turns), m), m - spec["magnitude_std"] / math.sqrt(2 * math.pi), None)}


def random_erasing(case: Case) -> dict:
    spec, drawn = case.spec, case.spec["distribution"]
    size, n, settings = spec["size"], drawn["n"], erasing_settings(spec["params"])
    rng = np.random.default_rng(0)
    boxes = np.array([draw_erasing_box(size, rng, drawn["probability"], **settings)[0] for _ in range(n)])
    boxes, none = boxes[boxes[:, 2] > 0], (boxes[:, 2] == 0).mean()
    top, left, h, w = boxes.T
    values = {"area": h * w / size ** 2, "log_aspect": np.log(h / w), "h": h, "w": w, "top": top, "left": left}
    of = {"h*w/(H*W)": values["area"], "log(h/w)": values["log_aspect"]}
    out = {name: histogram(case.arrays[name], of[rule["of"]], rule) for name, rule in spec["histograms"].items()}
    out |= {"json/none_fraction": fraction(none, drawn["none_fraction"], n)}
    out |= moments(values, {k: v for k, v in drawn.items() if k not in ("n", "probability", "none_fraction")}, n)
    for example in spec["examples"]:
        out[f"json/example_{example['seed']}"] = erasing_example(example, size, spec["params"]["mode"])
    return out


def erasing_settings(params: dict) -> dict:
    area, aspect, attempts, count, _ = only(params, "area", "aspect", "attempts", "count", "mode")
    return {"area": area, "aspect": aspect, "attempts": attempts, "count": count}


def erasing_example(example: dict, size: int, mode: str) -> Check:
    """Erase an example's box from a zero image: it alone changes, to noise of the stated mean and deviation."""
    _, _, box, mean_, std, filled = only(
        example, "seed", "probability", "box_top_left_h_w", "noise_mean", "noise_std", "fully_filled")
    paddle.seed(0)
    boxes = tensor(np.array([[box or (0, 0, 0, 0)]], np.int32))
    shape = [1, 3, size, size]
    image = erase(tensor(np.zeros(shape, np.float32)), boxes, erasing_noise(boxes, shape, mode)).numpy()[0]
    if box is None:
        return same(image.any(), False)
    top, left, h, w = box
    patch = image[:, top:top + h, left:left + w]
    whole = np.count_nonzero(image) == np.count_nonzero(patch) and bool(patch.all()) == filled
    off = max(abs(patch.mean() - mean_) / math.sqrt(2), abs(patch.std() - std)) * math.sqrt(patch.size)
    return Check(bool(whole and off < 5), float(off), 0.0, "5 standard errors")


def rrc_distribution(case: Case) -> dict:
    out = {}
    for entry in case.spec["distributions"]:
        index, entry = entry["index"], dict(entry)
        boxes, (width, height) = crop_boxes(entry, case.spec["attempts"]), entry["image_wh"]
        i, j, h, w = boxes.T
        room = {"i/max(H-h,1)": i / np.maximum(height - h, 1), "h*w/(H*W)": h * w / (height * width),
                "log(w/h)": np.log(w / h)}
        for name, rule in case.spec["histograms"].items():
            out[f"out/{index}_{name}"] = histogram(case.arrays[f"out/{index}_{name}"], room[rule["of"]], rule)
        values = {"area": room["h*w/(H*W)"], "log_aspect": room["log(w/h)"], "h": h, "w": w, "i": i, "j": j,
                  "centre_y": (i + h / 2) / height, "centre_x": (j + w / 2) / width}
        spans = (h == height) | (w == width)
        shares = {"full_height": h == height, "full_width": w == width,
                  "looks_like_fallback": spans & (i == (height - h) // 2) & (j == (width - w) // 2)}
        stated = {k: v for k, v in entry.items() if k not in ("index", "which", "image_wh", "scale", "ratio", "n")}
        out |= {f"json/{index}_{k}": fraction(v.mean(), stated.pop(k), entry["n"]) for k, v in shares.items()}
        out |= {f"json/{index}_area_min": not_below(values["area"], stated.pop("area_min")),
                f"json/{index}_area_max": not_below(-values["area"], -stated.pop("area_max"))}
        out |= moments(values, stated, entry["n"], f"{index}_")
    return out


def crop_boxes(entry: dict, attempts: dict[str, int]) -> np.ndarray:
    """n boxes [n, 4] by the crop rule the entry names."""
    which, (width, height), rng = entry["which"], entry["image_wh"], np.random.default_rng(entry["index"])
    settings = {"scale": tuple(entry["scale"]), "ratio": tuple(entry["ratio"])}
    if which in ("torchvision", "timm"):
        draw, settings = crops.draw_crop_box, settings | {"attempts": attempts[which]}
    elif which == "mae_simple" and attempts[which] == 1:
        draw = crops.draw_simple_crop_box
    else:
        raise ValueError(f"a crop rule this adapter does not understand: {which}, {attempts[which]} attempts")
    return np.array([draw((height, width), rng, **settings) for _ in range(entry["n"])])


def mixup_cutmix(case: Case) -> dict:
    params, out = mixup.MixupParams(**case.spec["params"]), {}
    size = case.inputs["x"].shape[2:]
    for entry in case.spec["outputs"]:
        index, cutmix, lam, used, _, corners, corrected = only(
            entry, "index", "cutmix", "lam_drawn", "lam_used", "numpy_seed", "bbox_yl_yh_xl_xh", "lam_corrected")
        box = (0, 0, 0, 0)
        if cutmix:
            top, bottom, left, right = corners
            box = (top, left, bottom - top, right - left)
            lam = mixup.remaining_share(size, box)
            out[f"json/{index}_box"] = reachable(box, size, entry["lam_drawn"])
            out[f"json/{index}_lam_corrected"] = near(lam, corrected, 1e-12)
        out[f"json/{index}_lam_used"] = near(lam, used, 1e-12)
        b = len(case.inputs["x"])
        draws = mixup.MixupDraws(np.full(b, lam), np.tile(box, (b, 1)), np.full(b, cutmix))
        x, target = mixup.apply_mixup(tensor(case.inputs["x"]), tensor(case.inputs["target"]), draws, params)
        out |= {f"out/{index}_x": x.numpy(), f"out/{index}_target": target.numpy()}
    return out | mixup_distribution(case.spec["distribution"], params)


def reachable(box: tuple, size: tuple[int, int], lam: float) -> Check:
    """Some centre in the image gives this box at this lam."""
    centres = ((y, x) for y in range(size[0]) for x in range(size[1]))
    return same(any(mixup.cutmix_box(size, lam, centre) == tuple(box) for centre in centres), True)


def mixup_distribution(stated: dict, params: mixup.MixupParams) -> dict:
    n, cutmix_share, mix_mean, mix_std, cut_mean, cut_std, real_mean, real_std, bins = only(
        stated, "n", "cutmix_fraction", "mixup_lam_mean", "mixup_lam_std", "cutmix_lam_mean", "cutmix_lam_std",
        "cutmix_lam_corrected_mean_224", "cutmix_lam_corrected_std_224", "mixup_lam_hist10")
    rng = np.random.default_rng(0)
    lam, cutmix = map(np.array, zip(*(mixup.draw_lam(params, rng) for _ in range(n))))
    corrected = np.array([lam for lam, _, cut in (mixup.draw_one((224, 224), params, rng) for _ in range(n)) if cut])
    mixed, cut = {"mixup_lam": lam[~cutmix]}, {"cutmix_lam": lam[cutmix]}
    half = sum(bins)
    return {"json/cutmix_fraction": fraction(cutmix.mean(), cutmix_share, n),
            "json/mixup_lam_hist10": histogram(np.array(bins), lam[~cutmix], {"bins": 10, "range": [0, 1]})} \
        | moments(mixed, {"mixup_lam_mean": mix_mean, "mixup_lam_std": mix_std}, half) \
        | moments(cut, {"cutmix_lam_mean": cut_mean, "cutmix_lam_std": cut_std}, n - half) \
        | moments({"corrected": corrected}, {"corrected_mean": real_mean, "corrected_std": real_std}, n - half)


KINDS = {"decode": decoding, "resized_crop": resized_crops, "eval_resize_crop": eval_resize_crop,
         "eval_224_jpeg": eval_jpeg, "byol_views": byol_views, "color_ops": color_ops, "gaussian_blur": gaussian_blur,
         "randaugment_ops": randaugment_ops, "random_erasing": random_erasing, "rrc_distribution": rrc_distribution,
         "mixup_cutmix": mixup_cutmix}
